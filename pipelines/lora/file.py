"""LoRA files as plain tensors: read, write, and several as one.

The weight change of a layer is strength * (alpha / rank) * B @ A; an alpha that is not stored
equals the rank. What is no matrix product comes in full: differences of biases, norms and
modulation (`.diff`, `.diff_b`, `.diff_m`), added times strength; and a guidance embedder. How files
name all this is in `pipelines.files.lora_names`.
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
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipelines.files.disk import atomic_path
from pipelines.files.lora_alpha import stated_settings
from pipelines.files.lora_names import DELTAS, TensorRole, recognise
from pipelines.files.lora_outline import adapter_file, lora_shapes
from pipelines.files.tensors import Header
from pipelines.files.weight_names import TRANSFORMER
from pipelines.recipe import Adapter, SamplerSpec
from pipelines.sampling.guidance_embedder import is_guidance_weight, portable_name


@dataclass(frozen=True)
class Lora:
    """One file by diffusers' names: A `down` [rank, in], B `up` [out, rank], alpha where stated.

    `up_biases` [out] belong to B and scale with it. `deltas` are full differences by the name of
    the parameter. `guidance` holds a guidance embedder by portable name, or nothing.
    """

    down: dict[str, Tensor]
    up: dict[str, Tensor]
    alphas: dict[str, float]
    guidance: dict[str, Tensor] = field(default_factory=dict)
    deltas: dict[str, Tensor] = field(default_factory=dict)
    up_biases: dict[str, Tensor] = field(default_factory=dict)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the weight changes [out, in, ...] by layer."""
        return {
            layer: (self.up[layer].shape[0], *down.shape[1:]) for layer, down in self.down.items()
        }

    def scale(self, layer: str, lora_alpha: float | None = None) -> float:
        """alpha / rank of a layer, where `lora_alpha` replaces the file's own."""
        rank = self.down[layer].shape[0]
        alpha = self.alphas.get(layer, rank) if lora_alpha is None else lora_alpha
        return alpha / rank

    def product(self, layer: str, lora_alpha: float | None = None) -> Tensor:
        """(alpha / rank) * B @ A of a layer, fp32 [out, in]; a convolution's `in` is flattened."""
        up, down = self.up[layer].float().flatten(1), self.down[layer].float().flatten(1)
        return self.scale(layer, lora_alpha) * (up @ down)


def read_lora(path: Path) -> Lora:
    """Reads a LoRA file (safetensors, or a pickle of plain weights) or a PEFT folder."""
    if path.is_dir():
        settings = stated_settings(path, {})
        return _parse(path, read_tensors(adapter_file(path))[0], settings)
    tensors, metadata = read_tensors(path)
    return _parse(path, tensors, stated_settings(path, metadata))


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors of a LoRA file or PEFT folder by their names in the file."""
    if path.is_dir() or path.suffix == ".safetensors":
        return dict(lora_shapes(path))
    return {name: tuple(tensor.shape) for name, tensor in read_tensors(path)[0].items()}


def read_tensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
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
    """Sorts tensors by what they are; `settings` are PEFT's, where known."""
    try:
        _, parts = recognise(tensors)
    except ValueError as error:
        raise ValueError(f"adapter {path} {error}") from error
    lora = Lora({}, {}, {})
    for key, part in parts.items():
        _put(lora, part, tensors[key])
    halves = (lora.down.keys() ^ lora.up.keys()) | (lora.up_biases.keys() - lora.up.keys())
    if halves:
        raise ValueError(
            f"adapter {path} is incomplete: {min(halves)} has only one of A and B; "
            "copy or download it again"
        )
    for layer, down in lora.down.items():
        if down.shape[0] != lora.up[layer].shape[1]:
            raise ValueError(
                f"adapter {path} is damaged: at {layer} A has rank {down.shape[0]} and B "
                f"{lora.up[layer].shape[1]}; copy or download it again"
            )
    if "lora_alpha" in settings:
        lora.alphas.update(_stated_alphas(lora, settings))
    return lora


def _put(lora: Lora, part: TensorRole, tensor: Tensor) -> None:
    """Adds one tensor of a file to what has been read."""
    if part.kind == "alpha":
        lora.alphas[part.name] = float(tensor)
        return
    places = {"down": lora.down, "up": lora.up, "up_bias": lora.up_biases}
    places |= {"guidance": lora.guidance} | dict.fromkeys(DELTAS, lora.deltas)
    places[part.kind][part.name] = tensor


def _stated_alphas(lora: Lora, settings: dict[str, Any]) -> dict[str, float]:
    """Alpha of every layer by PEFT's settings, whose patterns may be in Wan's own names."""
    patterns = settings.get("alpha_pattern", {})
    alphas = {}
    for layer, down in lora.down.items():
        native = TRANSFORMER.to_native(layer) or layer
        keys = [get_pattern_key(patterns, name) for name in (layer, native)]
        alpha = next((patterns[key] for key in keys if key in patterns), settings["lora_alpha"])
        rank_stabilised = settings.get("use_rslora", False)  # then PEFT divides by sqrt(rank)
        alphas[layer] = alpha * math.sqrt(down.shape[0]) if rank_stabilised else alpha
    return alphas


def stack_loras(adapters: Sequence[Adapter]) -> Lora:
    """One LoRA that changes the weights as these do together; its alpha is its rank everywhere.

    A's are stacked, B's stand side by side and take in strength * alpha / rank; deltas are summed.
    All in fp32. ValueError where two bring a guidance embedder.
    """
    deltas: dict[str, Tensor] = {}
    downs: dict[str, list[Tensor]] = {}
    ups: dict[str, list[Tensor]] = {}
    guides: list[tuple[str, dict[str, Tensor]]] = []
    for adapter in adapters:
        lora = read_lora(Path(adapter.path))
        for layer, down in lora.down.items():
            scale = adapter.strength * lora.scale(layer, adapter.lora_alpha)
            downs.setdefault(layer, []).append(down.float())
            ups.setdefault(layer, []).append(lora.up[layer].float() * scale)
        for name, delta in scaled_deltas(lora, adapter).items():
            deltas[name] = deltas[name] + delta if name in deltas else delta
        if lora.guidance:
            guides.append((adapter.path, scaled_guidance(lora.guidance, adapter.strength)))
    require_one_guide([path for path, _ in guides])
    stacked = {layer: torch.cat(parts) for layer, parts in downs.items()}
    beside = {layer: torch.cat(parts, dim=1) for layer, parts in ups.items()}
    alphas = {layer: float(down.shape[0]) for layer, down in stacked.items()}
    return Lora(stacked, beside, alphas, guides[0][1] if guides else {}, deltas)


def scaled_deltas(lora: Lora, adapter: Adapter) -> dict[str, Tensor]:
    """What is added to parameters in full: deltas times strength, biases of B with B's scale."""
    deltas = {name: delta.float() * adapter.strength for name, delta in lora.deltas.items()}
    for layer, bias in lora.up_biases.items():
        change = bias.float() * (adapter.strength * lora.scale(layer, adapter.lora_alpha))
        name = f"{layer}.bias"
        deltas[name] = deltas[name] + change if name in deltas else change
    return deltas


def scaled_guidance(guidance: dict[str, Tensor], strength: float) -> dict[str, Tensor]:
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
    layers = sorted(
        {n.removeprefix("transformer.").split(".lora_")[0] for n in tensors if ".lora_" in n}
    )
    settings = {"r": rank, "lora_alpha": alpha, "target_modules": layers}
    metadata = {
        "format": "pt",
        "lora_adapter_metadata": json.dumps({f"transformer.{k}": v for k, v in settings.items()}),
    }
    if sampler is not None:
        metadata["sampler"] = sampler.model_dump_json()
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata=metadata)
