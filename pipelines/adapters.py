"""LoRA files on a transformer, as PEFT on diffusers' layer names.

Alpha and strength change without a reload. Matches are counted here, because the libraries attach
nothing and say nothing when the names are foreign.
"""

import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakKeyDictionary

from diffusers import WanTransformer3DModel
from peft.tuners.lora import LoraLayer
from torch import nn

from pipelines.files import fingerprint
from pipelines.guidance import (
    activate_guidance_embedder,
    delete_guidance_embedder,
    load_guidance_embedder,
)
from pipelines.lora_files import Lora, read_lora, require_one_guide, save_lora, stack_loras
from pipelines.recipe import Adapter

__all__ = ["Lora", "apply_adapters", "read_lora", "save_lora", "stack_loras"]

MAX_RESIDENT = 8  # LoRAs kept attached, active or not; rank 64 on Wan2.1 14B is 0.6 GB


@dataclass(frozen=True)
class Attachment:
    """What is remembered of a file: alpha by layer, and a note where only part of it fits."""

    alphas: dict[str, float]
    note: str | None
    guides: bool  # whether the file brought a guidance embedder


_attached: WeakKeyDictionary[WanTransformer3DModel, dict[str, Attachment]] = WeakKeyDictionary()


def apply_adapters(
    transformer: WanTransformer3DModel, adapters: Sequence[Adapter]
) -> tuple[str, ...]:
    """Makes exactly these adapters active and returns notes about files that match in part.

    A file is read the first time; afterwards switching, alpha and strength only change scales.
    Without adapters the base computes as if it had never been touched. A guidance embedder is
    active with the adapter that brings it. ValueError for a file that cannot be applied.
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
    guides = [(n, a) for n, a in zip(names, adapters, strict=True) if attached[n].guides]
    require_one_guide([adapter.path for _, adapter in guides])
    for adapter, name in zip(adapters, names, strict=True):
        for layer, alpha in attached[name].alphas.items():
            own = adapter.lora_alpha is None
            transformer.get_submodule(layer).lora_alpha[name] = alpha if own else adapter.lora_alpha
    if names:
        transformer.enable_adapters()
        transformer.set_adapters(names, [adapter.strength for adapter in adapters])
    elif attached:
        transformer.disable_adapters()
    activate_guidance_embedder(transformer, None)
    for name, adapter in guides:
        activate_guidance_embedder(transformer, name, adapter.strength)
    idle = [name for name in attached if name not in names]
    for name in idle[: max(len(attached) - MAX_RESIDENT, 0)]:
        transformer.delete_adapters(name)
        if attached.pop(name).guides:
            delete_guidance_embedder(transformer, name)
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
    if lora.guidance:
        load_guidance_embedder(transformer, lora.guidance, name)
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
    alphas = {layer: lora.alphas.get(layer, ranks[layer]) for layer in matched}
    return Attachment(alphas, note, bool(lora.guidance))


def _linear_layers(transformer: WanTransformer3DModel) -> Iterator[tuple[str, nn.Linear]]:
    """Linear layers by their own names, seen through LoRAs that are already attached."""
    for name, module in transformer.named_modules():
        if isinstance(module, LoraLayer):
            yield name, module.get_base_layer()
        elif isinstance(module, nn.Linear):
            yield name, module


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
