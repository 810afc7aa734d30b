"""Validation while training: the student's videos beside its teacher's, measured and ranked.

Call `validator.Validator`; `drift` says how far a student is from its teacher.
Imports torch.
"""
