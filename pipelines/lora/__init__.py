"""LoRA weights: read from any dialect, put on a transformer, merged, extracted, written.

Call `apply.apply_adapters` to switch LoRAs on a loaded transformer without a reload.
Imports torch and peft.
"""
