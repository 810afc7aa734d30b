"""Downloads of published models, each a process of its own that outlives the studio.

Call `downloads.Downloads`.
Torch is never imported.
"""
