"""One run in the page: figures, samples, log, settings, checkpoints, and what its buttons do.

Call `view` for what a run directory holds, `html` for how it is shown, `actions` for the
buttons.
Torch is never imported.
"""
