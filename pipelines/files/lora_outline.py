"""What a LoRA file holds and how much of it a model has, told from names and shapes alone."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path

from pipelines.files.diffusers_layout import weight_files
from pipelines.files.layouts import is_diffusers_part
from pipelines.files.lora_names import DELTAS, recognise
from pipelines.files.tensors import Header, tensor_shapes
from pipelines.files.wan_layout import WEIGHTS, transformer_files
from pipelines.files.weight_names import diffusers_names

DELTA_KINDS = ("modulation", "norm", "bias", "weight")
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Outline:
    """A LoRA by diffusers' names: shapes of the weight changes [out, in, ...] and of the deltas."""

    flavour: str
    layers: dict[str, tuple[int, ...]]
    ranks: dict[str, int]
    deltas: dict[str, tuple[int, ...]]
    guides: bool  # whether it brings a guidance embedder


@dataclass(frozen=True)
class Match:
    """The layers and deltas that a model has, and a sentence where that is not all."""

    layers: tuple[str, ...]
    deltas: tuple[str, ...]
    note: str | None


def outline(shapes: Shapes) -> Outline:
    """The outline of a file with these tensors. ValueError, to follow "adapter FILE "."""
    flavour, parts = recognise(shapes)
    by_kind: dict[str, dict[str, tuple[int, ...]]] = {}
    for key, part in parts.items():
        by_kind.setdefault(part.kind, {})[part.name] = shapes[key]
    down, up = by_kind.get("down", {}), by_kind.get("up", {})
    both = sorted(down.keys() & up.keys())
    deltas = {name: shape for kind in DELTAS for name, shape in by_kind.get(kind, {}).items()}
    return Outline(
        flavour.title,
        {layer: (up[layer][0], *down[layer][1:]) for layer in both},
        {layer: down[layer][0] for layer in both},
        deltas,
        "guidance" in by_kind,
    )


def adapter_file(path: Path) -> Path:
    """The file with a LoRA's weights: the file itself, or the one in a PEFT folder."""
    if not path.is_dir():
        return path
    pickled, whole = path / "adapter_model.bin", path / "adapter_model.safetensors"
    return pickled if pickled.is_file() and not whole.is_file() else whole


def is_lora_file(path: Path) -> bool:
    """Whether a file is a LoRA, safetensors or a pickle of plain weights; told without weights."""
    return path.suffix in WEIGHTS and _holds_lora_weights(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=4096)
def _holds_lora_weights(path: Path, mtime_ns: int) -> bool:
    """The time is an argument so that a changed file is read again."""
    try:
        return any("lora_" in name for name in tensor_shapes(path))
    except ValueError:
        return False


def lora_shapes(path: Path) -> Shapes:
    """Shapes of the tensors of a LoRA file or a PEFT folder, told without its weights."""
    return tensor_shapes(adapter_file(path))


def transformer_shapes(path: Path) -> Shapes | None:
    """Shapes of a transformer by diffusers' names, from headers; None for a pickle.

    `path` is the folder or file of any layout.
    """
    if is_diffusers_part(path):
        files = weight_files(path)
    else:
        files = transformer_files(path) if path.is_dir() else [path]
    if any(file.suffix != ".safetensors" for file in files):
        return None
    shapes = {name: shape for file in files for name, shape in Header(file).shapes.items()}
    names = diffusers_names(shapes)
    return None if names is None else {names[name]: shape for name, shape in shapes.items()}


def find_match(layers: Shapes, deltas: Shapes, model: Shapes) -> Match:
    """What of a LoRA a model with these parameters has, by the shapes of the changes.

    ValueError, to follow "adapter FILE ", where it has nothing.
    """
    match = [name for name, shape in layers.items() if _alike(shape, model.get(f"{name}.weight"))]
    fitting_deltas = [name for name, shape in deltas.items() if _alike(shape, model.get(name))]
    odd = [n for n in (*layers, *deltas) if n not in match and n not in fitting_deltas]
    if not match and not fitting_deltas:
        raise ValueError(_why_not(odd, layers, deltas, model))
    note = None
    if odd:
        counted = f"{len(match)} of {len(layers)} layers"
        counted += f" and {len(fitting_deltas)} of {len(deltas)} deltas" if deltas else ""
        note = f"{counted} fit this model; the others, such as {odd[0]}, are left out"
    return Match(tuple(match), tuple(fitting_deltas), note)


def _alike(shape: tuple[int, ...], here: tuple[int, ...] | None) -> bool:
    """Equal but for flattening: extracted LoRAs of the patch embedding may be matrices."""
    return here is not None and shape[0] == here[0] and prod(shape) == prod(here)


def _why_not(odd: list[str], layers: Shapes, deltas: Shapes, model: Shapes) -> str:
    changed = {f"{name}.weight": shape for name, shape in layers.items()} | dict(deltas)
    known = next((name for name in changed if name in model), None)
    if known is None:
        return f"fits no layer of this model (it names {odd[0]}); use a LoRA made for this model"
    return (
        f"was made for another model: {known.removesuffix('.weight')} is {_text(changed[known])} "
        f"in the file and {_text(model[known])} here; use a LoRA made for this model"
    )


def _text(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def summary(lora: Outline, model: Shapes | None = None) -> str:
    """One line for people: the flavour, layers (of a model, how many it has), rank and deltas.

    ValueError, to follow "adapter FILE ", where the model has nothing of it.
    """
    found = Match(tuple(lora.layers), tuple(lora.deltas), None)
    if model is not None:
        found = find_match(lora.layers, lora.deltas, model)
    of = "" if model is None else f" of {len(lora.layers)}"
    ranks = sorted(set(lora.ranks.values()))
    words = [f"{lora.flavour}: {len(found.layers)}{of} layers"]
    if ranks:
        words.append(f"rank {ranks[0]}" + (f" to {ranks[-1]}" if len(ranks) > 1 else ""))
    counts = Counter(map(delta_kind, found.deltas))
    words += [
        f"{counts[kind]} {kind} delta{'s' * (counts[kind] > 1)}"
        for kind in DELTA_KINDS
        if counts[kind]
    ]
    if len(found.deltas) < len(lora.deltas):
        words.append(f"{len(lora.deltas) - len(found.deltas)} deltas that do not fit")
    return ", ".join([*words, *(["a guidance embedder"] if lora.guides else [])])


def delta_kind(parameter: str) -> str:
    """What kind of parameter a delta changes: modulation, norm, bias or weight."""
    if parameter.endswith("scale_shift_table"):
        return "modulation"
    if ".norm" in parameter:
        return "norm"
    return "bias" if parameter.endswith(".bias") else "weight"
