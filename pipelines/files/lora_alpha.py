"""The alpha that a LoRA was trained with, told without its weights."""

import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.files.disk import read_json
from pipelines.files.lora_names import recognise
from pipelines.files.lora_outline import adapter_file, lora_shapes
from pipelines.files.tensors import Header

NUMBERS = {"F64": "<d", "F32": "<f", "F16": "<e", "I64": "<q", "I32": "<i"}  # BF16 has none


def own_alpha(path: Path) -> float:
    """The one alpha of all layers of a LoRA file or a PEFT folder.

    ValueError where layers differ or none has factors: then no `lora_alpha` stands for the file.
    """
    file, shapes = adapter_file(path), lora_shapes(path)
    try:
        _, parts = recognise(shapes)
    except ValueError as error:
        raise ValueError(f"adapter {path} {error}") from error
    ranks = {part.name: shapes[key][0] for key, part in parts.items() if part.kind == "down"}
    keys = [key for key, part in parts.items() if part.kind == "alpha"]
    pickled = file.suffix != ".safetensors"
    if pickled and keys:
        raise ValueError(
            f"adapter {path} keeps its alpha in a pickle, which is not opened here; convert it "
            "with `python -m pipelines lora export`"
        )
    stated = {parts[key].name: number for key, number in _numbers(file, keys).items()}
    settings = stated_settings(path, {} if pickled else Header(file).metadata)
    found = {stated.get(layer, rank) for layer, rank in ranks.items()}
    if "lora_alpha" in settings:
        found = {float(a) for a in _settings_alphas(settings, ranks.values())}
    if len(found) != 1:
        shown = f"has alphas from {min(found):g} to {max(found):g}" if found else "has no alpha"
        raise ValueError(
            f"adapter {path} {shown}, so that no lora_alpha is its own; compare strengths instead"
        )
    return float(found.pop())


def stated_settings(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """PEFT's settings of a LoRA: a folder's file, or what a file's metadata say; else nothing."""
    if path.is_dir():
        if not (path / "adapter_config.json").is_file():
            raise ValueError(
                f"adapter {path} is a folder without adapter_config.json; give the LoRA file"
            )
        settings: dict[str, Any] = read_json(path / "adapter_config.json")
        return settings
    stored = json.loads(metadata.get("lora_adapter_metadata", "{}"))
    return {key.removeprefix("transformer."): value for key, value in stored.items()}


def _settings_alphas(settings: Mapping[str, Any], ranks: Iterable[int]) -> Iterable[float]:
    """All alphas that PEFT's settings speak of, in the form alpha / rank."""
    alphas = {settings["lora_alpha"], *settings.get("alpha_pattern", {}).values()}
    if not settings.get("use_rslora", False):
        return alphas
    return [alpha * rank**0.5 for alpha in alphas for rank in ranks]  # over sqrt(rank) there


def _numbers(file: Path, names: Sequence[str]) -> dict[str, float]:
    """Tensors of one element of a safetensors file by name: numpy, which could read the others,
    has no bf16."""
    if not names:
        return {}
    with file.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(size))
        found = {}
        for name in names:
            begin, end = header[name]["data_offsets"]
            stream.seek(8 + size + begin)
            raw, kind = stream.read(end - begin), header[name]["dtype"]
            if kind == "BF16":  # the upper half of an fp32
                raw, kind = b"\0\0" + raw, "F32"
            if kind not in NUMBERS or len(raw) != struct.calcsize(NUMBERS[kind]):
                raise ValueError(f"adapter {file} has no number in {name}; use a plain LoRA")
            (found[name],) = struct.unpack(NUMBERS[kind], raw)
    return found
