"""Adapters of several roles on one shared transformer, and which of them is on.

One copy of the base serves teacher, student and critic: their forwards differ only in the adapter
that is on. Autograd needs the same one in backward, because activation checkpointing runs the
forward again; PEFT's own switch also flips `requires_grad`, which silently loses gradients.
"""

import warnings

import torch
from diffusers import WanTransformer3DModel
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn

from pipelines.lora.file import Lora
from pipelines.sampling.denoiser import Denoiser
from pipelines.sampling.guidance_embedder import (
    OWN,
    add_guidance_embedder,
    load_guidance_embedder,
    time_embedding,
)
from trainers.settings.roles import LoraSettings


class AdapterSwitch:
    """Turns one adapter of a transformer on and the others off."""

    def __init__(self, transformer: WanTransformer3DModel):
        self.transformer = transformer
        self.active: str | None = None
        self.layers: list[LoraLayer] = []

    def ready(self) -> None:
        """To be called when all adapters are in place: remembers the layers."""
        self.layers = [m for m in self.transformer.modules() if isinstance(m, LoraLayer)]
        self._turn_on(None)  # PEFT leaves on what it adds

    def activate(self, adapter: str | None) -> None:
        """Turns `adapter` on, unless it is; None is the base as it is."""
        if adapter != self.active:
            self._turn_on(adapter)

    def _turn_on(self, adapter: str | None) -> None:
        """Sets what PEFT's own setters set, but not `requires_grad`, which they flip too.

        Sharding has replaced the parameters since, and their gradients may be yet to come.
        """
        for layer in self.layers:
            layer._disable_adapters = adapter is None
            if adapter is not None:
                layer._active_adapter = [adapter]
        embedding = time_embedding(self.transformer)
        if embedding is not None:
            embedding.active = self.guidance_embedder(adapter)
        self.active = adapter

    def guidance_embedder(self, adapter: str | None) -> str | None:
        """The name of the guidance embedder that goes with an adapter, or None."""
        embedding = time_embedding(self.transformer)
        if embedding is None:
            return None
        names = list(embedding.guidance_embedder)
        return next((name for name in (adapter, OWN) if name in names), None)

    def require(self, adapter: str | None) -> None:
        """RuntimeError where another adapter is on: a recomputed forward would be another one."""
        if adapter != self.active:
            raise RuntimeError(
                f"backward runs with adapter {self.active!r} but forward ran with {adapter!r}"
            )


class RoleDenoiser(Denoiser):
    """One role's view of a transformer that roles may share.

    Its adapter is on during its forward, and again as soon as a gradient comes back to its output.
    """

    def __init__(
        self, transformer: WanTransformer3DModel, switch: AdapterSwitch, adapter: str | None
    ):
        super().__init__(transformer)
        self.switch, self.adapter = switch, adapter

    @property
    def embeds_guidance(self) -> bool:
        """Whether guidance is an input of this role."""
        return self.switch.guidance_embedder(self.adapter) is not None

    def activate(self) -> None:
        """Turns the role's adapter on."""
        self.switch.activate(self.adapter)


def add_adapter(
    transformer: WanTransformer3DModel, name: str, lora: LoraSettings, start: Lora | None
) -> None:
    """Injects an adapter that starts equal to `start`, the rest of its rank fresh.

    ValueError naming `lora.rank` or `lora.targets` where they fit neither the network nor `start`.
    """
    _require_targets(transformer, lora)
    settings = LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, target_modules=list(lora.targets), bias="none"
    )
    with warnings.catch_warnings():
        # PEFT is surprised by a second adapter; here that is the point.
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")
        inject_adapter_in_model(settings, transformer, adapter_name=name)
    if start is None:
        return
    layers = {
        layer: module
        for layer, module in transformer.named_modules()
        if isinstance(module, LoraLayer) and name in module.lora_A
    }
    for layer, down in start.down.items():
        if layer not in layers:
            raise ValueError(f"lora.targets: the model's own LoRA also adapts {layer}; add it")
        if down.shape[0] > lora.rank:
            raise ValueError(
                f"lora.rank is {lora.rank} but the model's own LoRA has rank {down.shape[0]}; "
                "set it at least that high"
            )
        _copy_into(layers[layer], name, start, layer)
    if start.guidance:
        load_guidance_embedder(transformer, start.guidance, name)


def _require_targets(transformer: WanTransformer3DModel, lora: LoraSettings) -> None:
    """ValueError for a target that names no layer: PEFT says so only when all of them do not."""
    names = [
        name
        for name, module in transformer.named_modules()
        if isinstance(module, nn.Linear | LoraLayer)
    ]
    for target in lora.targets:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            raise ValueError(f"lora.targets: no linear layer of the model is named {target!r}")


@torch.no_grad()
def _copy_into(module: LoraLayer, name: str, start: Lora, layer: str) -> None:
    down, up = start.down[layer], start.up[layer]
    rank = down.shape[0]
    scale = start.alphas.get(layer, rank) / rank / module.scaling[name]
    module.lora_A[name].weight[:rank] = down
    module.lora_B[name].weight[:, :rank] = up * scale


def add_embedder(transformer: WanTransformer3DModel, name: str) -> None:
    """Gives an adapter its own guidance embedder, unless it came with one."""
    embedding = time_embedding(transformer)
    if embedding is None or name not in embedding.guidance_embedder:
        add_guidance_embedder(transformer, name)


@torch.no_grad()
def merge(transformer: WanTransformer3DModel, lora: Lora) -> None:
    """Adds a LoRA to the weights for good: W + alpha / rank * B A."""
    for layer in lora.down:
        weight = transformer.get_submodule(layer).weight
        weight += lora.product(layer).to(weight)
    if lora.guidance:
        load_guidance_embedder(transformer, lora.guidance)
