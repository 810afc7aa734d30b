"""What a run keeps in its directory: logs, checkpoints, exports.

Call `log.Tracker`, `checkpoint.save_checkpoint`, `export.export_role`.
Imports torch.
"""
