"""Everything a run can be asked for, as strict pydantic models; YAML, shell and form share them.

Call `run.TrainConfig`; `roles` holds what a method's own settings are made of.
Torch is never imported.
"""
