"""The Models tab's inside: rows of models and LoRAs, and downloads as processes.

Call `downloads.Downloads`.
Torch is never imported.
"""
