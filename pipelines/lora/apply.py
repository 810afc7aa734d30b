"""LoRA files on a transformer, as PEFT on diffusers' layer names.

Alpha and strength change without a reload. What a file adds to parameters in full (biases, norms,
modulation) is written over the base's own values, which come back bit for bit when it is off.
Matches are counted here, because the libraries attach nothing and say nothing when the names are
foreign.
"""

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from weakref import WeakKeyDictionary

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor

from pipelines.files.disk import fingerprint
from pipelines.files.lora_outline import Match, Shapes, find_match
from pipelines.lora.file import (
    Lora,
    read_lora,
    require_one_guide,
    scaled_deltas,
)
from pipelines.recipe import Adapter
from pipelines.sampling.guidance_embedder import (
    activate_guidance_embedder,
    delete_guidance_embedder,
    load_guidance_embedder,
)

MAX_RESIDENT = 8  # LoRAs kept attached, active or not; rank 64 on Wan2.1 14B is 0.6 GB


@dataclass(frozen=True)
class Attachment:
    """What is remembered of a file: alpha by layer, and a note where only part of it fits."""

    alphas: dict[str, float]
    in_full: Lora  # the deltas, and the factors that their scale depends on
    guides: bool  # whether the file brought a guidance embedder
    note: str | None


@dataclass
class Attached:
    """The files on one transformer by adapter name, and the base's values where one is changed."""

    files: dict[str, Attachment] = field(default_factory=dict)
    originals: dict[str, Tensor] = field(default_factory=dict)


_attached: WeakKeyDictionary[WanTransformer3DModel, Attached] = WeakKeyDictionary()


def apply_adapters(
    transformer: WanTransformer3DModel, adapters: Sequence[Adapter]
) -> tuple[str, ...]:
    """Makes exactly these adapters active and returns notes about files that match in part.

    A file is read the first time; afterwards switching, alpha and strength only change scales and
    the few parameters that are changed in full. Their order does not matter, to the last bit.
    Without adapters the base computes as if it had never been touched. A guidance embedder is
    active with the adapter that brings it. ValueError for a file that cannot be applied.
    """
    active = _by_name(adapters)
    attached = _attached.setdefault(transformer, Attached())
    for name, adapter in active.items():
        if name not in attached.files:
            attached.files[name] = _attach(transformer, adapter.path, name)
    files = {name: attached.files[name] for name in active}
    guides = {name: active[name] for name, file in files.items() if file.guides}
    require_one_guide([adapter.path for adapter in guides.values()])
    for name, file in files.items():
        for layer, alpha in file.alphas.items():
            given = active[name].lora_alpha
            transformer.get_submodule(layer).lora_alpha[name] = alpha if given is None else given
    with_factors = [name for name, file in files.items() if file.alphas]
    if with_factors:
        transformer.enable_adapters()
        transformer.set_adapters(with_factors, [active[name].strength for name in with_factors])
        _freeze_factors(transformer)
    elif any(file.alphas for file in attached.files.values()):
        transformer.disable_adapters()
    _write_in_full(transformer, attached.originals, [(files[n].in_full, active[n]) for n in active])
    activate_guidance_embedder(transformer, None)
    for name, adapter in guides.items():
        activate_guidance_embedder(transformer, name, adapter.strength)
    _delete_idle(transformer, attached, active)
    return tuple(file.note for file in files.values() if file.note)


def _by_name(adapters: Sequence[Adapter]) -> dict[str, Adapter]:
    """Adapters by a name that follows from the content, sorted. ValueError where two are equal."""
    named = {
        f"lora_{adapter.fingerprint or fingerprint(Path(adapter.path))}": adapter
        for adapter in adapters
    }
    if len(named) < len(adapters):
        paths = ", ".join(adapter.path for adapter in adapters)
        raise ValueError(f"adapter files {paths} are not all different; list each once")
    return dict(sorted(named.items()))


def _attach(transformer: WanTransformer3DModel, path: str, name: str) -> Attachment:
    """Adds what fits of the file to the transformer under `name`."""
    lora = read_lora(Path(path))
    parameters = base_parameters(transformer)
    model = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    match = match_lora(path, lora, model)
    if lora.guidance:
        load_guidance_embedder(transformer, lora.guidance, name)
    weights: dict[str, Tensor] = {}
    for layer in match.layers:
        down, up, base = lora.down[layer], lora.up[layer], parameters[f"{layer}.weight"]
        rank, kernel = down.shape[0], base.shape[2:]  # the patch embedding is a convolution
        weights[f"{layer}.lora_A.weight"] = down.reshape(rank, *base.shape[1:])
        weights[f"{layer}.lora_B.weight"] = up.reshape(-1, rank, *(1 for _ in kernel))
    if weights:
        ranks = {layer: lora.down[layer].shape[0] for layer in match.layers}
        _add_factors(transformer, weights, ranks, name)
    biases = {layer: b for layer, b in lora.up_biases.items() if f"{layer}.bias" in match.deltas}
    in_full = Lora(
        {layer: lora.down[layer] for layer in biases},
        {},
        {layer: alpha for layer, alpha in lora.alphas.items() if layer in biases},
        deltas={n: delta for n, delta in lora.deltas.items() if n in match.deltas},
        up_biases=biases,
    )
    alphas = {layer: lora.alphas.get(layer, lora.down[layer].shape[0]) for layer in match.layers}
    return Attachment(alphas, in_full, bool(lora.guidance), match.note)


def match_lora(path: str, lora: Lora, model: Shapes) -> Match:
    """What of a file a model with these parameters has. ValueError where that is nothing."""
    deltas = {name: tuple(delta.shape) for name, delta in lora.deltas.items()}
    deltas |= {f"{layer}.bias": tuple(bias.shape) for layer, bias in lora.up_biases.items()}
    try:
        match = find_match(lora.shapes, deltas, model)
    except ValueError as error:
        raise ValueError(f"adapter {path} {error}") from error
    return replace(match, note=match.note and f"adapter {path}: {match.note}")


def _add_factors(
    transformer: WanTransformer3DModel,
    weights: dict[str, Tensor],
    ranks: dict[str, int],
    name: str,
) -> None:
    """Attaches A and B of all layers as one PEFT adapter."""
    highest = max(ranks.values())
    settings = {
        "r": highest,
        "rank_pattern": {re.escape(layer): r for layer, r in ranks.items() if r < highest},
        "target_modules": list(ranks),
    }
    with warnings.catch_warnings():
        # PEFT is surprised by a second adapter; here that is the point.
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")
        transformer.load_lora_adapter(weights, prefix=None, adapter_name=name, metadata=settings)


def _freeze_factors(transformer: WanTransformer3DModel) -> None:
    """PEFT makes the active adapter trainable; here nothing is trained."""
    for name, parameter in transformer.named_parameters():
        if ".lora_" in name:
            parameter.requires_grad_(False)


@torch.no_grad()
def _write_in_full(
    transformer: WanTransformer3DModel,
    originals: dict[str, Tensor],
    active: Sequence[tuple[Lora, Adapter]],
) -> None:
    """Writes base + all deltas into the parameters, summed in fp32 and rounded once.

    What no active file changes any more gets its own value back.
    """
    changes: dict[str, Tensor] = {}
    for lora, adapter in active:
        for name, delta in scaled_deltas(lora, adapter).items():
            changes[name] = changes[name] + delta if name in changes else delta
    parameters = base_parameters(transformer)
    for name in originals.keys() - changes.keys():
        parameters[name].copy_(originals.pop(name))
    for name, change in changes.items():
        parameter = parameters[name]
        original = originals.setdefault(name, parameter.detach().clone())
        parameter.copy_(original.float() + change.to(original.device).view_as(original))


def base_parameters(transformer: WanTransformer3DModel) -> dict[str, Tensor]:
    """The model's own parameters by their own names, seen through LoRAs that are attached."""
    return {
        name.replace(".base_layer.", "."): parameter
        for name, parameter in transformer.named_parameters()
        if ".lora_" not in name
    }


def _delete_idle(
    transformer: WanTransformer3DModel, attached: Attached, active: Mapping[str, Adapter]
) -> None:
    """Removes the files attached longest ago that are not active, down to what may stay."""
    idle = [name for name in attached.files if name not in active]
    for name in idle[: max(len(attached.files) - MAX_RESIDENT, 0)]:
        file = attached.files.pop(name)
        if file.alphas:
            transformer.delete_adapters(name)
        if file.guides:
            delete_guidance_embedder(transformer, name)
