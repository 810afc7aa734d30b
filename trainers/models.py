"""From names in a configuration to networks in memory."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, ModelMixin, WanTransformer3DModel

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


class Codecs:
    """The prompt encoder and the VAE of the run's model.

    Each is loaded when it is first needed, and then shared: Wan's text encoder takes 11 GB.
    """

    def __init__(self, config: TrainConfig[Any], device: torch.device):
        self.entry = registry_entry(Registry(), config.model)
        assert self.entry.folder is not None
        self.folder, self.device = self.entry.folder, str(device)

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


def load_models(config: TrainConfig[Any]) -> dict[str, Model]:
    """The run's own model under "", and every other one that a role names; all in fp32.

    A student on the run's own base shares its network. ValueError where a model is not here.
    """
    registry = Registry()
    own = registry_entry(registry, config.model)
    component = algorithm_class(config.method).component
    network = _load(own, component)
    adapters = [*(Adapter(path=str(path)) for path in own.adapters), *config.adapters]
    models = {"": Model(network, stack_loras(adapters) if adapters else None)}
    for name in _named_by_roles(config):
        entry = registry_entry(registry, name)
        loras = [Adapter(path=str(path)) for path in entry.adapters]
        shared = (entry.folder, entry.transformer) == (own.folder, own.transformer)
        models[name] = Model(
            network if shared else _load(entry, component), stack_loras(loras) if loras else None
        )
    return models


def registry_entry(registry: Registry, name: str) -> ModelEntry:
    """A model that is here and whole; ValueError says what is missing."""
    entry = registry.entry(name)
    if entry.folder is None:
        raise ValueError(f"model: {entry.missing}")
    return entry


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
    assert entry.folder is not None
    if component == "vae":
        vae: AutoencoderKLWan = AutoencoderKLWan.from_pretrained(entry.folder, subfolder="vae")
        return vae.float()
    folder: Path = entry.transformer or entry.folder / "transformer"
    transformer: WanTransformer3DModel = load_transformer(folder, torch.float32, "cpu")
    return transformer
