"""Files on disk: layouts, names and shapes of what is in them, atomic writes, content hashes.

Call `layouts` for where the parts of a model lie, `tensors` for what a weights file holds.
Only headers and samples are read, and torch is never imported.
"""
