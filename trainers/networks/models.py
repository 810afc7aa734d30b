"""The networks of the models that a configuration names, in memory."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, ModelMixin, WanTransformer3DModel
from torch import nn

from pipelines.catalog.entries import ModelEntry
from pipelines.catalog.registry import Registry
from pipelines.files.layouts import image_encoder_path
from pipelines.lora.file import Lora, stack_loras
from pipelines.models.codecs import PromptEncoder, VideoCodec
from pipelines.models.first_frame import ImageConditioner
from pipelines.models.loading import (
    load_image_encoder,
    load_prompt_encoder,
    load_transformer,
    load_video_codec,
)
from pipelines.recipe import Adapter, Recipe
from pipelines.sampling.first_frame import ImageCondition
from trainers.networks.shared_base import merge
from trainers.registry import algorithm_class
from trainers.settings.roles import Frozen, Trainable
from trainers.settings.run import TrainConfig


@dataclass(frozen=True)
class LoadedModel:
    """A model as its name means it: the network, and the LoRA that makes a student of it."""

    network: ModelMixin
    lora: Lora | None = None

    @property
    def transformer(self) -> WanTransformer3DModel:
        """The network of a model that is a transformer."""
        assert isinstance(self.network, WanTransformer3DModel)
        return self.network


LoadNetwork = Callable[[ModelEntry, str], ModelMixin]


class Codecs:
    """The prompt encoder, the VAE and, for images, CLIP of a model.

    Each is loaded when it is first needed, and then shared: Wan's text encoder takes 11 GB.
    """

    def __init__(self, entry: ModelEntry, device: torch.device | str):
        self.entry, self.folder, self.device = entry, model_folder(entry), str(device)

    @cached_property
    def prompts(self) -> PromptEncoder:
        """Prompts -> embeddings."""
        return load_prompt_encoder(self.folder, self.entry.preset.text_length, self.device)

    @cached_property
    def video(self) -> VideoCodec:
        """Video <-> latents."""
        return load_video_codec(self.folder, self.device, self.entry.preset.geometry)

    @cached_property
    def images(self) -> ImageConditioner:
        """First frames -> what the model reads of them. ValueError where it continues none."""
        preset = self.entry.preset
        if preset.image_preprocessing is None:
            raise ValueError(f"model: {preset.name} makes videos from the prompt alone, not images")
        has_encoder = image_encoder_path(self.folder).exists()
        encoder = load_image_encoder(self.folder, self.device) if has_encoder else None
        return ImageConditioner(self.video, encoder, preset.image_preprocessing)

    def condition(self, recipe: Recipe) -> ImageCondition | None:
        """What the model reads of the recipe's image, where it has one."""
        if recipe.image is None:
            return None
        size = (recipe.width, recipe.height, recipe.num_frames)
        return self.images.condition(Path(recipe.image.path), *size)


def load_weights(entry: ModelEntry, component: str) -> ModelMixin:
    """One component in fp32, from the folder that has it."""
    base = model_folder(entry)
    if component == "vae":
        vae: AutoencoderKLWan = AutoencoderKLWan.from_pretrained(base, subfolder="vae")
        return vae.float()
    path = entry.loaded_transformer
    transformer: WanTransformer3DModel = load_transformer(path, torch.float32, "cpu")
    return transformer


def load_models(
    config: TrainConfig[Any], registry: Registry, load: LoadNetwork = load_weights
) -> dict[str, LoadedModel]:
    """The run's own model under "", and every other one that a role names; all in fp32.

    A student on the run's own base shares its network. `load` makes a network from an entry and the
    name of a component. ValueError where a model is not here.
    """
    own = registry.entry(config.model)
    component = algorithm_class(config.method).component
    network = load(own, component)
    adapters = [*(Adapter(path=str(path)) for path in own.adapters), *config.adapters]
    if config.algorithm.on_top:
        _require_one_name(config)
    else:
        base = own if own.base is None else registry.entry(own.base)
        _require_standing_on_base(config, own, base)
    start = _model(network, adapters)
    if config.algorithm.on_top and start.lora is not None:
        merge(start.transformer, start.lora)  # a student as a base
        start = LoadedModel(network)
    models = {"": start}
    for name in _named_by_roles(config):
        entry = registry.entry(name)
        loras = [Adapter(path=str(path)) for path in entry.adapters]
        shared = entry.networks == own.networks and not (config.algorithm.on_top and own.adapters)
        models[name] = _model(network if shared else load(entry, component), loras)
    return models


def _model(network: ModelMixin, adapters: Sequence[Adapter]) -> LoadedModel:
    """A network with its LoRAs as one; ValueError where they were made for another model."""
    if not adapters:
        return LoadedModel(network)
    lora = stack_loras(adapters)
    paths = ", ".join(adapter.path for adapter in adapters)
    if lora.deltas:
        raise ValueError(
            f"adapters: {paths} changes {len(lora.deltas)} parameters in full, such as "
            f"{min(lora.deltas)}, which a run cannot start from; write a model with it by "
            "`python -m pipelines lora merge` and name that"
        )
    linear = {name: m for name, m in network.named_modules() if isinstance(m, nn.Linear)}
    for layer, shape in lora.shapes.items():
        if layer not in linear or linear[layer].weight.shape != shape:
            raise ValueError(
                f"adapters: {paths} does not fit the model at {layer}; use a LoRA made for it"
            )
    return LoadedModel(network, lora)


def _require_one_name(config: TrainConfig[Any]) -> None:
    """ValueError where what the exported LoRA stands on would not be a model by name."""
    if config.adapters:
        raise ValueError(
            f"adapters: {config.method} trains a LoRA on top of a model, which the export names; "
            "make a student of model and adapters first"
        )


def _require_standing_on_base(config: TrainConfig[Any], own: ModelEntry, base: ModelEntry) -> None:
    """ValueError where the run would export a LoRA on weights that are not its base model's."""
    student = config.algorithm.roles()["student"]
    lora = isinstance(student, Trainable) and student.lora is not None
    if lora and own.transformer != base.transformer:
        raise ValueError(
            f"algorithm.student.lora: {config.model} has a transformer of its own, and a LoRA can "
            "only be exported for a base model; leave lora out"
        )


def model_folder(entry: ModelEntry) -> Path:
    """Where a model is; ValueError says what is missing."""
    if entry.folder is None:
        raise ValueError(f"model: {entry.missing}")
    return entry.folder


def _named_by_roles(config: TrainConfig[Any]) -> list[str]:
    roles = config.algorithm.roles().values()
    named = [role.model for role in roles if isinstance(role, Frozen)]
    named += [role.start_from for role in roles if isinstance(role, Trainable)]
    return [name for name in named if name]
