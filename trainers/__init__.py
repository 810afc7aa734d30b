"""Training: `python -m trainers CONFIG` is one run of one method in one directory.

A method is a file in algorithms/, a reward one in rewards/; `engine.Trainer` runs them.
Rooms from the ground up: settings, worlds, ranks, sources, scoring, networks, data, run,
prepare, validation.
"""
