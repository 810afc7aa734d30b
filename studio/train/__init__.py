"""The Train form: settings of a method as fields, checked while typing, planned and queued.

Call `training.Training`; methods and their settings are asked of a child process that has torch.
Torch is never imported here.
"""
