"""What models and LoRAs exist here, what is missing, and how the missing is fetched.

Call `registry.Registry`: it turns a name into a `ModelEntry`, and wishes into a `Recipe`.
Torch is never imported.
"""
