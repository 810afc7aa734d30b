"""Builds the networks that a method declares.

Own weights, a LoRA on its base, frozen, or a moving average.
"""

import copy
from collections.abc import Iterable
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, ModelMixin, WanTransformer3DModel
from diffusers.models.attention_dispatch import AttentionBackendName
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from pipelines.denoiser import Denoiser
from trainers.config import AlgorithmConfig, Ema, Frozen, Lora, Role, Trainable

CLASSES = {"transformer": WanTransformer3DModel, "vae": AutoencoderKLWan}


class Autoencoder(nn.Module):
    """A VAE as one call, so that sharding sees one forward and one backward."""

    def __init__(self, vae: AutoencoderKLWan):
        super().__init__()
        self.vae = vae

    def forward(self, video: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """video [B, F, C, H, W] in [0, 1] and noise [B, C, F, H, W] of the latents' shape, fp32.

        Returns the decoded video and the posterior's mean and log variance.
        """
        posterior = self.vae.encode(video.transpose(1, 2) * 2 - 1).latent_dist
        mean, log_variance = posterior.mean.float(), posterior.logvar.float()
        latents = mean + noise * torch.exp(0.5 * log_variance)
        decoded = self.vae.decode(latents).sample.float()
        return decoded.transpose(1, 2) * 0.5 + 0.5, mean, log_variance


class BuiltRole:
    """A declared role: `network` is diffusers' own class, `call` is what a method calls."""

    def __init__(self, settings: Role, network: ModelMixin):
        self.settings, self.network = settings, network
        is_vae = isinstance(network, AutoencoderKLWan)
        self.call: nn.Module = Autoencoder(network) if is_vae else Denoiser(network)

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters an optimizer moves, by name."""
        return {n: p for n, p in self.network.named_parameters() if p.requires_grad}

    @property
    def blocks(self) -> Iterable[nn.Module]:
        """The repeated blocks of a transformer: the units of sharding."""
        return self.network.blocks if isinstance(self.network, WanTransformer3DModel) else ()


def load_base(folder: Path, component: str) -> nn.Module:
    """One component of a diffusers model folder, in fp32."""
    network: nn.Module = CLASSES[component].from_pretrained(folder, subfolder=component)
    return network.float()


def build_roles(config: AlgorithmConfig, base: nn.Module) -> dict[str, BuiltRole]:
    """The networks of all declared roles, in fp32.

    The base itself is handed to the first role that keeps it frozen.
    """
    base.requires_grad_(False)
    built: dict[str, BuiltRole] = {}
    for name, settings in config.roles().items():
        if isinstance(settings, Frozen):
            built[name] = BuiltRole(settings, base)
        elif isinstance(settings, Trainable):
            network = copy.deepcopy(base)
            if settings.lora is None:
                network.requires_grad_(True)
            else:
                _add_lora(network, settings.lora, field=f"algorithm.{name}.lora")
            built[name] = BuiltRole(settings, network.train())
        else:
            if settings.of not in built:
                raise ValueError(
                    f"algorithm.{name}.of: there is no trained role {settings.of!r} above it"
                )
            average = copy.deepcopy(built[settings.of].network).requires_grad_(False)
            built[name] = BuiltRole(settings, average)
    return built


def tune_compute(
    roles: Iterable[BuiltRole], attention_backend: str | None, compile_blocks: bool
) -> None:
    """Sets how transformers compute; ValueError for a backend that diffusers does not know.

    Only trained networks are compiled: the others run too seldom to earn it back.
    """
    known = [name.value for name in AttentionBackendName]
    if attention_backend is not None and attention_backend not in known:
        raise ValueError(f"attention_backend: choose one of {', '.join(known)}")
    for role in roles:
        if not isinstance(role.network, WanTransformer3DModel):
            if attention_backend is not None or compile_blocks:
                raise ValueError("attention_backend, compile_blocks: only transformers have them")
            continue
        if attention_backend is not None:
            role.network.set_attention_backend(attention_backend)
        if compile_blocks and role.trained:
            for block in role.blocks:
                block.compile()


def _add_lora(network: nn.Module, lora: Lora, field: str) -> None:
    """Injects trainable low-rank layers; ValueError where no layer has one of the names."""
    names = [name for name, m in network.named_modules() if isinstance(m, nn.Linear)]
    unmatched = [
        target
        for target in lora.targets
        if not any(name == target or name.endswith(f".{target}") for name in names)
    ]
    if unmatched:
        raise ValueError(f"{field}.targets: no linear layer of the model is named {unmatched[0]!r}")
    peft_config = LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, target_modules=list(lora.targets), bias="none"
    )
    inject_adapter_in_model(peft_config, network, adapter_name="default")


@torch.no_grad()
def update_ema(average: BuiltRole, of: BuiltRole) -> None:
    """average <- decay * average + (1 - decay) * of, over the parameters that are trained."""
    assert isinstance(average.settings, Ema)
    parameters = dict(average.network.named_parameters())
    for name, parameter in of.trained.items():
        parameters[name].lerp_(parameter, 1 - average.settings.decay)


def trained_state(role: BuiltRole, roles: dict[str, BuiltRole]) -> dict[str, Tensor]:
    """The tensors a checkpoint must hold for this role: none for a frozen one."""
    if isinstance(role.settings, Frozen):
        return {}
    source = roles[role.settings.of] if isinstance(role.settings, Ema) else role
    parameters = dict(role.network.named_parameters())
    return {name: parameters[name].data for name in source.trained}
