"""The networks of a run: loaded by name, copied or adapted for each role, made fast.

Call `models.load_models`, then `build.build_roles`; a `role.BuiltRole` is what the engine
trains.
Imports torch, diffusers and peft.
"""
