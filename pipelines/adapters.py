"""LoRA files on a transformer, as PEFT on diffusers' layer names.

The weight change of a layer is strength * (alpha / rank) * B @ A; alpha and strength change without
a reload. An alpha that is not stored equals the rank. Matches are counted here, because the
libraries attach nothing and say nothing when the names are foreign.
"""

import json
import math
import pickle
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from diffusers import WanTransformer3DModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pipelines.files import Header, atomic_path, fingerprint, read_json
from pipelines.recipe import Adapter, SamplerSpec

PREFIXES = ("base_model.model.", "transformer.")
MAX_RESIDENT = 8  # LoRAs kept attached, active or not; rank 64 on Wan2.1 14B is 0.6 GB


@dataclass(frozen=True)
class Lora:
    """One file by layer name: A `down` [rank, in], B `up` [out, rank], and alpha where stated."""

    down: dict[str, Tensor]
    up: dict[str, Tensor]
    alphas: dict[str, float]


@dataclass(frozen=True)
class Attachment:
    """What is remembered of a file: alpha by layer, and a note where only part of it fits."""

    alphas: dict[str, float]
    note: str | None


_attached: WeakKeyDictionary[WanTransformer3DModel, dict[str, Attachment]] = WeakKeyDictionary()


def apply_adapters(
    transformer: WanTransformer3DModel, adapters: Sequence[Adapter]
) -> tuple[str, ...]:
    """Makes exactly these adapters active and returns notes about files that match in part.

    A file is read the first time; afterwards switching, alpha and strength only change scales.
    Without adapters the base computes as if it had never been touched. ValueError for a file that
    cannot be applied.
    """
    paths = [adapter.path for adapter in adapters]
    names = [
        f"lora_{adapter.fingerprint or fingerprint(Path(adapter.path))}" for adapter in adapters
    ]
    if len(set(names)) < len(names):
        raise ValueError(f"adapter files {', '.join(paths)} are not all different; list each once")
    attached = _attached.setdefault(transformer, {})
    for path, name in zip(paths, names, strict=True):
        if name not in attached:
            attached[name] = _attach(transformer, path, name)
    for adapter, name in zip(adapters, names, strict=True):
        for layer, alpha in attached[name].alphas.items():
            own = adapter.lora_alpha is None
            transformer.get_submodule(layer).lora_alpha[name] = alpha if own else adapter.lora_alpha
    if names:
        transformer.enable_adapters()
        transformer.set_adapters(names, [adapter.strength for adapter in adapters])
    elif attached:
        transformer.disable_adapters()
    idle = [name for name in attached if name not in names]
    for name in idle[: max(len(attached) - MAX_RESIDENT, 0)]:
        transformer.delete_adapters(name)
        del attached[name]
    return tuple(note for name in names if (note := attached[name].note))


def _attach(transformer: WanTransformer3DModel, path: str, name: str) -> Attachment:
    """Adds the file's layers to the transformer under `name`."""
    lora = read_lora(Path(path))
    linear = dict(_linear_layers(transformer))
    matched = [layer for layer in lora.down if layer in linear]
    if not matched:
        raise ValueError(
            f"adapter {path} fits no layer of this model (it names {next(iter(lora.down))}); "
            "use a LoRA for Wan2.1 in diffusers or PEFT format"
        )
    for layer in matched:
        here = _shape(linear[layer].weight.shape)
        in_file = _shape((lora.up[layer].shape[0], lora.down[layer].shape[1]))
        if in_file != here:
            raise ValueError(
                f"adapter {path} was made for another model: {layer} is {in_file} in the file and "
                f"{here} here; use a LoRA made for this model"
            )
    weights = {f"{layer}.lora_A.weight": lora.down[layer] for layer in matched}
    weights |= {f"{layer}.lora_B.weight": lora.up[layer] for layer in matched}
    ranks = {layer: lora.down[layer].shape[0] for layer in matched}
    settings = {
        "r": max(ranks.values()),
        "rank_pattern": {
            re.escape(layer): r for layer, r in ranks.items() if r < max(ranks.values())
        },
        "target_modules": matched,
    }
    with warnings.catch_warnings():
        # PEFT is surprised by a second adapter; here that is the point.
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")
        transformer.load_lora_adapter(weights, prefix=None, adapter_name=name, metadata=settings)
    note = None
    if len(matched) < len(lora.down):
        foreign = next(layer for layer in lora.down if layer not in linear)
        note = (
            f"adapter {path}: {len(matched)} of {len(lora.down)} layers fit this model; "
            f"the others, such as {foreign}, are left out"
        )
    return Attachment({layer: lora.alphas.get(layer, ranks[layer]) for layer in matched}, note)


def _linear_layers(transformer: WanTransformer3DModel) -> Iterator[tuple[str, nn.Linear]]:
    """Linear layers by their own names, seen through LoRAs that are already attached."""
    for name, module in transformer.named_modules():
        if isinstance(module, LoraLayer):
            yield name, module.get_base_layer()
        elif isinstance(module, nn.Linear):
            yield name, module


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def read_lora(path: Path) -> Lora:
    """Reads a LoRA file (safetensors, or a pickle of plain weights) or a PEFT folder."""
    settings: dict[str, Any] = {}
    file = path
    if path.is_dir():
        settings = _peft_settings(path)
        file = path / "adapter_model.safetensors"
    tensors, metadata = _read_tensors(file)
    if "lora_adapter_metadata" in metadata:
        stored = json.loads(metadata["lora_adapter_metadata"])
        settings = {key.removeprefix("transformer."): value for key, value in stored.items()}
    return _parse(path, tensors, settings)


def _peft_settings(folder: Path) -> dict[str, Any]:
    if not (folder / "adapter_config.json").is_file():
        raise ValueError(
            f"adapter {folder} is a folder without adapter_config.json; give the LoRA file"
        )
    settings: dict[str, Any] = read_json(folder / "adapter_config.json")
    return settings


def _read_tensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata. Only pickles that hold nothing but weights are opened."""
    if not file.is_file():
        raise ValueError(f"adapter {file} does not exist; check the path")
    if file.suffix == ".safetensors":
        metadata = Header(file).metadata  # says which file is damaged, where it is
        return load_file(file), metadata
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError) as error:
        raise ValueError(
            f"adapter {file} is neither safetensors nor a pickle of plain weights, so it is not "
            "opened; ask for it as .safetensors"
        ) from error
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        raise ValueError(
            f"adapter {file} does not hold tensors by name; ask for it as .safetensors"
        )
    return content, {}


def _parse(path: Path, tensors: dict[str, Tensor], settings: dict[str, Any]) -> Lora:
    """Sorts tensors into A, B and alpha by layer name; `settings` are PEFT's, where known."""
    lora = Lora({}, {}, {})
    for key, tensor in tensors.items():
        match = re.fullmatch(r"(.+)\.(?:(lora_[AB])(?:\.\w+)?\.weight|(alpha))", key)
        if match is None:
            raise ValueError(
                f"adapter {path} cannot be applied: {key} is not a plain LoRA weight; "
                "use a LoRA for Wan2.1 in diffusers or PEFT format"
            )
        layer, factor, alpha = match.groups()
        for prefix in PREFIXES:
            layer = layer.removeprefix(prefix)
        if alpha:
            lora.alphas[layer] = float(tensor)
        else:
            (lora.down if factor == "lora_A" else lora.up)[layer] = tensor
    halves = lora.down.keys() ^ lora.up.keys()
    if halves or not lora.down:
        what = f"{min(halves)} has only one of lora_A and lora_B" if halves else "it is empty"
        raise ValueError(f"adapter {path} is incomplete: {what}; copy or download it again")
    for layer, down in lora.down.items() if "lora_alpha" in settings else ():
        alpha = settings.get("alpha_pattern", {}).get(layer, settings["lora_alpha"])
        rank_stabilised = settings.get("use_rslora", False)  # then PEFT divides by sqrt(rank)
        lora.alphas[layer] = alpha * math.sqrt(down.shape[0]) if rank_stabilised else alpha
    return lora


def save_lora(
    weights: dict[str, Tensor],
    path: Path,
    rank: int,
    alpha: float,
    sampler: SamplerSpec | None = None,
) -> None:
    """Writes a LoRA as diffusers does, with alpha and the sampler it wants in the metadata; atomic.

    `weights` are named as PEFT names them on a transformer (`LAYER.lora_A.default.weight`); others
    are left out.
    """
    pattern = re.compile(r"(.+\.lora_[AB])(?:\.\w+)?\.weight")
    tensors = {
        f"transformer.{match[1]}.weight": tensor.detach().cpu().contiguous()
        for name, tensor in weights.items()
        if (match := pattern.fullmatch(name))
    }
    layers = sorted({name.split(".", 1)[1].split(".lora_")[0] for name in tensors})
    settings = {"r": rank, "lora_alpha": alpha, "target_modules": layers}
    metadata = {
        "format": "pt",
        "lora_adapter_metadata": json.dumps({f"transformer.{k}": v for k, v in settings.items()}),
    }
    if sampler is not None:
        metadata["sampler"] = sampler.model_dump_json()
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata=metadata)
