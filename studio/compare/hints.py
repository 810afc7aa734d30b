"""Hints below fields of Compare: what a memory choice means, and whether a LoRA fits."""

from collections.abc import Sequence
from pathlib import Path

from pipelines.catalog.registry import Registry
from pipelines.files.lora_outline import lora_shapes, outline, summary, transformer_shapes
from pipelines.memory import EXPLAINED, parse_memory
from studio.clips.store import NUM_RECENT_CLIPS, Store
from studio.compare.variants import NO_HINT

PLAIN_HINT = "All on the device"
MOVED_HINT = "Weights move between RAM and the device: the same videos"
FIT_HINT = "The fastest that the free memory of the device allows"
FIRST_HINT = f"{FIT_HINT}; after a first clip you read here what that was"


def memory_choices(*others: str) -> list[tuple[str, str]]:
    """The choices of memory: plain, fit, and what else a studio or a clip was made with."""
    labels = {"plain": "Plain", "fit": "Fit to the device"}
    labels |= {words: words for words in others if words not in labels}
    return [(label, words) for words, label in labels.items()]


def memory_hint(registry: Registry, store: Store, memory: str, models: Sequence[str]) -> str:
    """What the choice does; for fit, also what it chose for these models last time, and why."""
    settings = parse_memory(memory)
    if memory == "plain":
        return PLAIN_HINT
    if settings != "fit":
        changes = settings.changes
        return f"With the {changes}, which changes videos a little" if changes else MOVED_HINT
    explained = _explanations(store, models)
    if not explained:
        return FIRST_HINT
    titles = {model: registry.entry(model).preset.title for model in explained}
    several = len(explained) > 1
    told = [f"{titles[m]}: {text}" if several else text for m, text in explained.items()]
    return " ".join([f"{FIT_HINT}. Last time:", *told])


def _explanations(store: Store, models: Sequence[str]) -> dict[str, str]:
    """By model, what its newest clip that was made with fit says of it."""
    found: dict[str, str] = {}
    for recipe, info in store.recent_clips(NUM_RECENT_CLIPS):
        told = [line for line in info.notes.splitlines() if line.startswith(EXPLAINED)]
        if recipe.memory == "fit" and recipe.model in models and told:
            found.setdefault(recipe.model, told[0].removeprefix(EXPLAINED))
    return found


def lora_hint(registry: Registry, model: str, lora: str | None) -> str:
    """The line for a LoRA on a model, read from headers alone; also why it cannot be used."""
    if not lora:
        return NO_HINT
    entry = registry.entry(model)
    shapes = None if entry.folder is None else transformer_shapes(entry.loaded_transformer)
    try:
        return summary(outline(lora_shapes(Path(lora))), shapes)
    except ValueError as error:
        return f"It {error}"
