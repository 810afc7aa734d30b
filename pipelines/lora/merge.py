"""LoRAs into weights: in place, and as a diffusers folder that needs no LoRA any more.

    W' = W + sum_i strength_i * (alpha_i / rank_i) * B_i A_i
    b' = b + sum_i strength_i * delta_i            (biases, norms, modulation alike)

Summed in fp32 and rounded once; the order of the LoRAs does not matter, to the last bit. Files are
written tensor by tensor: a merge takes the memory of its LoRAs.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor

from pipelines.catalog.entries import CheckpointSpec, ModelEntry
from pipelines.catalog.overrides import own_sampler
from pipelines.files.disk import atomic_folder, fingerprint
from pipelines.files.lora_outline import Shapes
from pipelines.formats.convert import open_model
from pipelines.formats.parts import StoredNetwork
from pipelines.formats.weights import Weight
from pipelines.formats.writers import write_diffusers
from pipelines.lora.apply import base_parameters, match_lora
from pipelines.lora.file import read_lora, require_one_guide, scaled_deltas, scaled_guidance
from pipelines.models.loading import load_transformer
from pipelines.recipe import Adapter
from pipelines.sampling.guidance_embedder import is_guidance_weight, load_guidance_embedder


class Merger:
    """LoRAs read and fitted to a model with these parameters; `notes` about partial matches.

    `guidance` is the embedder that one of them brings, times its strength, or nothing.
    ValueError for a file that fits nowhere.
    """

    def __init__(self, adapters: Sequence[Adapter], model: Shapes):
        ordered = sorted(adapters, key=lambda adapter: fingerprint(Path(adapter.path)))
        self.loras = [(adapter, read_lora(Path(adapter.path))) for adapter in ordered]
        self.fits = [match_lora(adapter.path, lora, model) for adapter, lora in self.loras]
        self.deltas = [scaled_deltas(lora, adapter) for adapter, lora in self.loras]
        self.notes = tuple(match.note for match in self.fits if match.note)
        guides = [(adapter, lora) for adapter, lora in self.loras if lora.guidance]
        require_one_guide([adapter.path for adapter, _ in guides])
        self.guidance: dict[str, Tensor] = {}
        for adapter, lora in guides:
            self.guidance = scaled_guidance(lora.guidance, adapter.strength)

    def merged(self, name: str, weight: Tensor) -> Tensor:
        """The parameter of that name with all changes, in its own type."""
        layer = name.removesuffix(".weight")
        change = torch.zeros_like(weight, dtype=torch.float32)
        for (adapter, lora), match, deltas in zip(self.loras, self.fits, self.deltas, strict=True):
            if layer in match.layers:
                product = adapter.strength * lora.product(layer, adapter.lora_alpha)
                change += product.to(change.device).view_as(change)
            if name in match.deltas:
                change += deltas[name].to(change.device).view_as(change)
        return (weight.float() + change).to(weight.dtype)


@torch.no_grad()
def merge_loras(transformer: WanTransformer3DModel, adapters: Sequence[Adapter]) -> tuple[str, ...]:
    """Adds the LoRAs to the weights of a transformer without any; notes about partial matches.

    ValueError, before anything has changed, for a file that fits nowhere.
    """
    parameters = base_parameters(transformer)
    merger = Merger(adapters, {name: tuple(p.shape) for name, p in parameters.items()})
    for name, parameter in parameters.items():
        parameter.copy_(merger.merged(name, parameter))
    if merger.guidance:
        load_guidance_embedder(transformer, merger.guidance)
    return merger.notes


def load_merged(base: ModelEntry, dtype: torch.dtype, device: str) -> WanTransformer3DModel:
    """A model's transformer with its own LoRA, if it is one, merged."""
    transformer = load_transformer(base.loaded_transformer, dtype, device)
    merge_loras(transformer, own_adapters(base))
    return transformer


def open_merged(
    base: ModelEntry, adapters: Sequence[Adapter] = ()
) -> tuple[StoredNetwork, tuple[str, ...]]:
    """A model's transformer with its own LoRA and these merged, a tensor at a time; the notes."""
    part = open_model(base.loaded_transformer, base.preset.name).transformer
    merger = Merger([*own_adapters(base), *adapters], part.shapes)
    tensors = {
        name: replace(weight, read=partial(_read_merged, merger, name, weight))
        for name, weight in part.tensors.items()
        if not (merger.guidance and is_guidance_weight(name))
    }
    for name, tensor in merger.guidance.items():
        tensors[name] = Weight(tuple(tensor.shape), tensor.dtype, partial(torch.clone, tensor))
    return replace(part, tensors=tensors), merger.notes


def _read_merged(merger: Merger, name: str, weight: Weight) -> Tensor:
    return merger.merged(name, weight.read())


def own_adapters(base: ModelEntry) -> list[Adapter]:
    """The LoRA that a student is."""
    return [Adapter(path=str(path)) for path in base.adapters]


def merge_to_folder(base: ModelEntry, adapters: Sequence[Adapter], folder: Path) -> tuple[str, ...]:
    """Writes `folder`, a diffusers folder with the base's own LoRA and these merged; the notes.

    Weights keep their type. `sampler.json` says how the result wants to be sampled. ValueError
    where the folder exists, or for a file that cannot be used.
    """
    assert base.folder is not None
    if folder.exists():
        raise ValueError(f"{folder} exists already; give the name of a new folder")
    transformer, notes = open_merged(base, adapters)
    own = {name: getattr(base.preset, name) for name in CheckpointSpec.model_fields}
    spec = CheckpointSpec(**{**own, "sampler": own_sampler(base.preset, adapters)})
    model = replace(open_model(base.folder, folder.name), transformer=transformer)
    with atomic_folder(folder) as partial_folder:
        more_notes = write_diffusers(model, partial_folder, spec)
        text = spec.model_dump_json(indent=2)
        (partial_folder / "sampler.json").write_text(text, encoding="utf-8")
    return (*notes, *more_notes)
