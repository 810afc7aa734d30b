"""Weights from one file format to another, a tensor at a time, and networks built from them.

Call `convert.convert` for a whole model, `parts.open_transformer` for one network.
Imports torch.
"""
