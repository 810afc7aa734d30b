"""From names in a configuration to networks in memory."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, ModelMixin, WanTransformer3DModel
from torch import nn

from pipelines.adapters import Lora, stack_loras
from pipelines.files import read_json
from pipelines.loading import (
    PromptEncoder,
    VideoCodec,
    load_prompt_encoder,
    load_transformer,
    load_video_codec,
)
from pipelines.recipe import Adapter
from pipelines.registry import ModelEntry, Registry
from trainers.config import Frozen, Trainable, TrainConfig
from trainers.registry import algorithm_class


@dataclass(frozen=True)
class Model:
    """A model as its name means it: the network, and the LoRA that makes a student of it."""

    network: ModelMixin
    lora: Lora | None = None


LoadNetwork = Callable[[ModelEntry, str], ModelMixin]


class Codecs:
    """The prompt encoder and the VAE of the run's model.

    Each is loaded when it is first needed, and then shared: Wan's text encoder takes 11 GB.
    """

    def __init__(self, config: TrainConfig[Any], device: torch.device):
        self.entry = Registry().entry(config.model)
        self.folder, self.device = model_folder(self.entry), str(device)

    @cached_property
    def prompts(self) -> PromptEncoder:
        """Prompts -> embeddings."""
        return load_prompt_encoder(self.folder, self.entry.preset.text_length, self.device)

    @cached_property
    def video(self) -> VideoCodec:
        """Video <-> latents."""
        return load_video_codec(self.folder, self.device)

    @property
    def num_latent_channels(self) -> int:
        """Channels of the latents, known without loading the VAE."""
        return int(read_json(self.folder / "vae" / "config.json")["z_dim"])


def load_models(config: TrainConfig[Any], load: LoadNetwork | None = None) -> dict[str, Model]:
    """The run's own model under "", and every other one that a role names; all in fp32.

    A student on the run's own base shares its network. `load` makes a network from an entry and the
    name of a component; by default from its weights. ValueError where a model is not here.
    """
    load = load or _load
    registry = Registry()
    own = registry.entry(config.model)
    component = algorithm_class(config.method).component
    network = load(own, component)
    adapters = [*(Adapter(path=str(path)) for path in own.adapters), *config.adapters]
    _require_standing_on_base(config, own)
    models = {"": _model(network, adapters)}
    for name in _named_by_roles(config):
        entry = registry.entry(name)
        loras = [Adapter(path=str(path)) for path in entry.adapters]
        shared = (entry.folder, entry.transformer) == (own.folder, own.transformer)
        models[name] = _model(network if shared else load(entry, component), loras)
    return models


def _model(network: ModelMixin, adapters: Sequence[Adapter]) -> Model:
    """A network with its LoRAs as one; ValueError where they were made for another model."""
    if not adapters:
        return Model(network)
    lora = stack_loras(adapters)
    shapes = {
        name: (module.out_features, module.in_features)
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear)
    }
    for layer, down in lora.down.items():
        if shapes.get(layer) != (lora.up[layer].shape[0], down.shape[1]):
            paths = ", ".join(adapter.path for adapter in adapters)
            raise ValueError(
                f"adapters: {paths} does not fit the model at {layer}; use a LoRA made for it"
            )
    return Model(network, lora)


def _require_standing_on_base(config: TrainConfig[Any], own: ModelEntry) -> None:
    """ValueError where the run would export a LoRA on weights that are not a base model's."""
    student = config.algorithm.roles()["student"]
    if own.transformer is not None and isinstance(student, Trainable) and student.lora is not None:
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
    names = []
    for role in config.algorithm.roles().values():
        if isinstance(role, Frozen) and role.model:
            names.append(role.model)
        if isinstance(role, Trainable) and role.start_from:
            names.append(role.start_from)
    return names


def _load(entry: ModelEntry, component: str) -> ModelMixin:
    """One component in fp32, from the folder that has it."""
    base = model_folder(entry)
    if component == "vae":
        vae: AutoencoderKLWan = AutoencoderKLWan.from_pretrained(base, subfolder="vae")
        return vae.float()
    folder: Path = entry.transformer or base / "transformer"
    transformer: WanTransformer3DModel = load_transformer(folder, torch.float32, "cpu")
    return transformer
