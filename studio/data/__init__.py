"""The Data tab's inside: data sets on disk, and preparing one as a run.

Call `preparing.Preparing`.
Torch is never imported.
"""
