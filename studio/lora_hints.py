"""What a chosen LoRA is, in one line beside it: flavour, layers that fit, rank, deltas."""

from pathlib import Path

from pipelines.catalog.registry import Registry
from pipelines.files.lora_outline import lora_shapes, outline, summary, transformer_shapes

NO_HINT = "A small file that changes the model"


def lora_hint(registry: Registry, model: str, lora: str | None) -> str:
    """The line for a LoRA on a model, read from headers alone; also why it cannot be used."""
    if not lora:
        return NO_HINT
    entry = registry.entry(model)
    shapes = None if entry.folder is None else transformer_shapes(entry)
    try:
        return summary(outline(lora_shapes(Path(lora))), shapes)
    except ValueError as error:
        return f"It {error}"
