"""Batches for training: a sample is a function of the seed, the step and the rank.

Call `batches.build_data`; `prepared` is the format on disk, `order` the order of samples.
Imports torch.
"""
