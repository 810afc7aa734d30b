"""LoRA files as plain tensors: read, write, and several as one.

The weight change of a layer is strength * (alpha / rank) * B @ A; an alpha that is not stored
equals the rank. A LoRA may come with a guidance embedder, in full.
"""

import json
import math
import pickle
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipelines.files import Header, atomic_path, read_json
from pipelines.guidance import is_guidance_weight, portable_name
from pipelines.recipe import Adapter, SamplerSpec

PREFIXES = ("base_model.model.", "transformer.")


@dataclass(frozen=True)
class Lora:
    """One file by layer name: A `down` [rank, in], B `up` [out, rank], and alpha where stated.

    `guidance` holds a guidance embedder by portable name, or nothing.
    """

    down: dict[str, Tensor]
    up: dict[str, Tensor]
    alphas: dict[str, float]
    guidance: dict[str, Tensor] = field(default_factory=dict)


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
        if is_guidance_weight(key):
            lora.guidance[_without_prefix(key)] = tensor
            continue
        match = re.fullmatch(r"(.+)\.(?:(lora_[AB])(?:\.\w+)?\.weight|(alpha))", key)
        if match is None:
            raise ValueError(
                f"adapter {path} cannot be applied: {key} is not a plain LoRA weight; "
                "use a LoRA for Wan2.1 in diffusers or PEFT format"
            )
        layer, factor, alpha = match.groups()
        layer = _without_prefix(layer)
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


def _without_prefix(name: str) -> str:
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    return name


def stack_loras(adapters: Sequence[Adapter]) -> Lora:
    """One LoRA that changes the weights as these do together; its alpha is its rank everywhere.

    A's are stacked, B's stand side by side and take in strength * alpha / rank. ValueError where
    two bring a guidance embedder.
    """
    downs: dict[str, list[Tensor]] = {}
    ups: dict[str, list[Tensor]] = {}
    guides: list[tuple[str, dict[str, Tensor]]] = []
    for adapter in adapters:
        lora = read_lora(Path(adapter.path))
        for layer, down in lora.down.items():
            rank = down.shape[0]
            alpha = lora.alphas.get(layer, rank)
            alpha = alpha if adapter.lora_alpha is None else adapter.lora_alpha
            downs.setdefault(layer, []).append(down.float())
            scaled = lora.up[layer].float() * (adapter.strength * alpha / rank)
            ups.setdefault(layer, []).append(scaled)
        if lora.guidance:
            guides.append((adapter.path, _scaled_guidance(lora.guidance, adapter.strength)))
    require_one_guide([path for path, _ in guides])
    stacked = {layer: torch.cat(parts) for layer, parts in downs.items()}
    beside = {layer: torch.cat(parts, dim=1) for layer, parts in ups.items()}
    alphas = {layer: float(down.shape[0]) for layer, down in stacked.items()}
    return Lora(stacked, beside, alphas, guides[0][1] if guides else {})


def _scaled_guidance(guidance: dict[str, Tensor], strength: float) -> dict[str, Tensor]:
    """The embedder times strength: its last layer is linear."""
    return {
        name: weight.float() * strength if ".linear_2." in name else weight.float()
        for name, weight in guidance.items()
    }


def require_one_guide(paths: Sequence[str]) -> None:
    """ValueError where more than one LoRA brings a guidance embedder."""
    if len(paths) > 1:
        raise ValueError(
            f"adapters {' and '.join(paths)} each bring a guidance embedder, and a model has room "
            "for one; leave out all but one"
        )


def save_lora(
    weights: dict[str, Tensor],
    path: Path,
    rank: int,
    alpha: float,
    sampler: SamplerSpec | None = None,
) -> None:
    """Writes a LoRA as diffusers does, with alpha and the sampler it wants in the metadata; atomic.

    `weights` are those of one adapter, named as on a transformer: `LAYER.lora_A.default.weight`,
    `....guidance_embedder.default.linear_1.weight`. Others are left out.
    """
    pattern = re.compile(r"(.+\.lora_[AB])(?:\.\w+)?(\.weight)")
    tensors: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        portable = pattern.sub(r"\1\2", portable_name(name))
        if pattern.fullmatch(portable) or is_guidance_weight(portable):
            assert f"transformer.{portable}" not in tensors, "weights of several adapters"
            tensors[f"transformer.{portable}"] = tensor.detach().cpu().contiguous()
    layers = sorted({_without_prefix(n).split(".lora_")[0] for n in tensors if ".lora_" in n})
    settings = {"r": rank, "lora_alpha": alpha, "target_modules": layers}
    metadata = {
        "format": "pt",
        "lora_adapter_metadata": json.dumps({f"transformer.{k}": v for k, v in settings.items()}),
    }
    if sampler is not None:
        metadata["sampler"] = sampler.model_dump_json()
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata=metadata)
