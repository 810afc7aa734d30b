"""Training runs as processes: queue, start, watch, stop, on this machine or under Slurm.

Call `supervisor.Supervisor`; the run directory is all that it and a trainer share.
Torch is never imported.
"""
