"""The shapes world: captions, their renderer, and the checker that reads captions back.

Call `shapes.render` and `checker.observe`; `python -m trainers.worlds` does both from a shell.
Torch is never imported.
"""
