"""The commands of `python -m pipelines` that are more than a few lines.

Each file has one `add_..._command` for the argument parser and what it runs.
Torch is imported late, where a command needs it, so that bad input is answered before.
"""
