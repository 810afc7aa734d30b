"""What a run would take, told by `--dry-run` before anything starts: parameters, memory, time.

Call `estimate.estimate`; `costs` counts on networks without weights.
Imports torch.
"""
