"""What a run keeps in its directory: logs, checkpoints, exports.

Call `folder.RunFolder`; `run.Run` is what it keeps.
Imports torch.
"""
