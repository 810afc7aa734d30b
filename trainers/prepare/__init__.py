"""`python -m trainers prepare`: videos and prompts into latents and embeddings on disk.

Call `command.main`, or `job.Preparation` for the work of one process among several.
Torch is imported once the input is good.
"""
