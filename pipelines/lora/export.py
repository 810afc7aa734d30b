"""LoRAs as other programs read them, alpha written: ComfyUI, LightX2V, stock diffusers.

The first two use Wan's own names. They differ in the modulation: ComfyUI adds `NAME.diff` to any
parameter, LightX2V calls the difference `diff_m`. Stock diffusers has room for matrix products and
their biases alone; what else a file holds cannot be written for it.
"""

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args

import torch
from safetensors.torch import save_file
from torch import Tensor

from pipelines.catalog.entries import adapter_sampler
from pipelines.files.disk import atomic_path
from pipelines.files.weight_names import TRANSFORMER
from pipelines.lora.file import Lora, read_lora, scaled_deltas
from pipelines.recipe import Adapter, SamplerSpec

Target = Literal["diffusers", "comfyui", "lightx2v"]
TARGETS = get_args(Target)
PATCH = "patch_embedding"
PATCH_SIZE = (1, 2, 2)  # its kernel in every Wan

Written = tuple[dict[str, Tensor], dict[str, str]]  # tensors, metadata


def export_lora(path: Path, out: Path, target: Target) -> None:
    """Writes the LoRA at `path` as `target` reads it, the sampler it carries included; atomic.

    ValueError where it holds what that format has no place for.
    """
    write_lora(read_lora(path), out, target, adapter_sampler(path))


def write_lora(lora: Lora, out: Path, target: Target, sampler: SamplerSpec | None = None) -> None:
    """Writes a LoRA in one of `TARGETS`; atomic. ValueError where that format has no place."""
    if out.suffix != ".safetensors" or out.is_dir():
        raise ValueError(f"out is {str(out)!r} but must be the name of a .safetensors file")
    if lora.guidance:
        raise ValueError(
            f"the LoRA brings a guidance embedder, which {target} has no place for; use it here, "
            "or `lora merge`"
        )
    in_full = scaled_deltas(lora, Adapter(path=""))  # with the biases of B, at strength 1
    tensors, metadata = WRITERS[target](Lora(lora.down, lora.up, lora.alphas, deltas=in_full))
    if sampler is not None:
        metadata["sampler"] = sampler.model_dump_json()
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    with atomic_path(out) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt", **metadata})


def _native(lora: Lora, modulation: str) -> Written:
    """Wan's own names; `modulation` is how the difference of NAME.modulation is called."""
    tensors: dict[str, Tensor] = {}
    for layer, down in lora.down.items():
        name = f"diffusion_model.{_native_name(layer)}"
        tensors[f"{name}.lora_down.weight"] = down
        tensors[f"{name}.lora_up.weight"] = lora.up[layer]
        tensors[f"{name}.alpha"] = torch.tensor(lora.scale(layer) * down.shape[0])
    endings = {".weight": ".diff", ".bias": ".diff_b", ".modulation": modulation}
    for parameter, delta in lora.deltas.items():
        name = _native_name(parameter)
        ending = next((e for e in endings if name.endswith(e)), None)
        if ending is None:
            raise ValueError(f"{name} has no place in this format; use `lora merge`")
        tensors[f"diffusion_model.{name.removesuffix(ending)}{endings[ending]}"] = delta
    return tensors, {}


def _comfyui(lora: Lora) -> Written:
    return _native(lora, ".modulation.diff")


def _lightx2v(lora: Lora) -> Written:
    """LightX2V multiplies matrices only: a change of the patch embedding is written in full."""
    if PATCH in lora.down:
        product = lora.product(PATCH)
        in_full = product.view(product.shape[0], -1, *PATCH_SIZE)
        earlier = lora.deltas.get(f"{PATCH}.weight", torch.zeros(()))
        lora = Lora(
            {layer: down for layer, down in lora.down.items() if layer != PATCH},
            lora.up,
            lora.alphas,
            deltas={**lora.deltas, f"{PATCH}.weight": in_full + earlier.float()},
        )
    return _native(lora, ".diff_m")


def _diffusers(lora: Lora) -> Written:
    """PEFT's factors with alpha in the metadata; differences of weights become factors."""
    down, up = dict(lora.down), dict(lora.up)
    alphas = {layer: lora.scale(layer) * a.shape[0] for layer, a in down.items()}
    biases: dict[str, Tensor] = {}
    homeless: list[str] = []
    for parameter, delta in sorted(lora.deltas.items(), reverse=True):  # weights before biases
        layer, _, kind = parameter.rpartition(".")
        if kind == "weight" and delta.dim() > 1:
            a, b = _as_product(delta.float())
            if layer in down:
                a = torch.cat([down[layer].float().view(-1, *a.shape[1:]), a])
                own = (up[layer].float() * lora.scale(layer)).view(b.shape[0], -1, *b.shape[2:])
                b = torch.cat([own, b], dim=1)
            down[layer], up[layer], alphas[layer] = a, b, float(a.shape[0])
        elif kind == "bias" and layer in down:
            scale = alphas[layer] / down[layer].shape[0]  # PEFT scales the bias too
            up[layer], alphas[layer] = up[layer].float() * scale, float(down[layer].shape[0])
            biases[layer] = delta
        else:
            homeless.append(parameter)
    if homeless:
        raise ValueError(
            f"the LoRA changes {len(homeless)} parameters that diffusers has no place for in a "
            f"LoRA, such as {homeless[0]}; use --to lightx2v, --to comfyui or `lora merge`"
        )
    tensors = {f"transformer.{layer}.lora_A.weight": a for layer, a in down.items()}
    tensors |= {f"transformer.{layer}.lora_B.weight": b for layer, b in up.items()}
    if biases:  # then PEFT wants one for every layer
        zeros = {layer: torch.zeros(b.shape[0]) for layer, b in up.items()}
        for layer, bias in (zeros | biases).items():
            tensors[f"transformer.{layer}.lora_B.bias"] = bias
    return tensors, {"lora_adapter_metadata": json.dumps(_peft_settings(down, alphas, biases))}


def _as_product(delta: Tensor) -> tuple[Tensor, Tensor]:
    """A [rank, in, ...] and B [out, rank, ...] with B @ A = delta, one of them the identity."""
    num_out, num_in, kernel = delta.shape[0], delta[0].numel(), delta.shape[2:]
    ones = (1,) * len(kernel)
    if num_out <= num_in:
        return delta, torch.eye(num_out).view(num_out, num_out, *ones)
    identity = torch.eye(num_in).view(num_in, -1, *kernel)
    return identity, delta.reshape(num_out, num_in, *ones)


def _peft_settings(
    down: dict[str, Tensor], alphas: dict[str, float], biases: dict[str, Tensor]
) -> dict[str, object]:
    """The settings of PEFT's LoraConfig, with the prefix that diffusers gives them in a file."""
    rank = Counter(a.shape[0] for a in down.values()).most_common(1)[0][0]
    alpha = Counter(alphas.values()).most_common(1)[0][0]
    settings = {
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {re.escape(n): a.shape[0] for n, a in down.items() if a.shape[0] != rank},
        "alpha_pattern": {re.escape(n): value for n, value in alphas.items() if value != alpha},
        "target_modules": sorted(down),
        "lora_bias": bool(biases),
    }
    return {f"transformer.{name}": value for name, value in settings.items()}


def _native_name(name: str) -> str:
    native = TRANSFORMER.to_native(name)
    if native is None:
        raise ValueError(f"{name} has no name in Wan's own code, so it cannot be written for it")
    return native


WRITERS: dict[Target, Callable[[Lora], Written]] = {
    "diffusers": _diffusers,
    "comfyui": _comfyui,
    "lightx2v": _lightx2v,
}
