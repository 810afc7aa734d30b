"""One network of a method in memory: what is trained, followed, saved."""

from collections.abc import Iterable, Mapping

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from torch import Tensor, nn

from pipelines.lora.file import Lora
from pipelines.sampling.denoiser import Denoiser
from trainers.ranks.ranks import whole
from trainers.settings.roles import Ema, Frozen, LoraSettings, Role, Trainable


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
    """A declared role.

    `network` holds its weights and may be shared, `adapter` names its part of a shared network,
    `call` is what a method calls, `body` is what is sharded.
    """

    def __init__(
        self,
        settings: Role,
        network: nn.Module,
        call: nn.Module,
        body: nn.Module,
        adapter: str | None = None,
    ):
        self.settings, self.network, self.call, self.body = settings, network, call, body
        self.adapter = adapter

    @property
    def transformer(self) -> WanTransformer3DModel:
        """The network of a role that is a transformer."""
        assert isinstance(self.network, WanTransformer3DModel)
        return self.network

    @property
    def denoiser(self) -> Denoiser:
        """The call of a role that is a transformer."""
        assert isinstance(self.call, Denoiser)
        return self.call

    @property
    def lora(self) -> LoraSettings | None:
        """The LoRA that the role trains; None where it trains weights of its own, or nothing."""
        return self.settings.lora if isinstance(self.settings, Trainable) else None

    @property
    def own_parameters(self) -> dict[str, nn.Parameter]:
        """The role's own parameters by name: of a shared network only its adapter."""
        named = dict(self.network.named_parameters())
        if self.adapter is None:
            return named
        return {name: p for name, p in named.items() if f".{self.adapter}." in name}

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters an optimizer moves, by name."""
        if not isinstance(self.settings, Trainable):
            return {}
        return {name: p for name, p in self.own_parameters.items() if p.requires_grad}

    @property
    def blocks(self) -> Iterable[nn.Module]:
        """The repeated blocks of a transformer: the units of sharding."""
        return self.network.blocks if isinstance(self.network, WanTransformer3DModel) else ()


def adapter_weights(role: BuiltRole) -> Lora:
    """A role's adapter in the form of a LoRA file."""
    assert role.lora is not None
    parts: dict[str, dict[str, Tensor]] = {"lora_A": {}, "lora_B": {}}
    guidance = {}
    for name, parameter in role.own_parameters.items():
        layer, _, rest = name.partition(".lora_")
        if rest:
            parts[f"lora_{rest[0]}"][layer] = parameter.detach().clone()
        else:
            guidance[name.replace(f".{role.adapter}.", ".")] = parameter.detach().clone()
    alphas = dict.fromkeys(parts["lora_A"], role.lora.alpha)
    return Lora(parts["lora_A"], parts["lora_B"], alphas, guidance)


@torch.no_grad()
def follow(average: BuiltRole, of: BuiltRole, decay: float) -> None:
    """average <- decay * average + (1 - decay) * of, over the parameters that are trained.

    The two roles name them alike, but for the name of an adapter.
    """
    parameters = dict(average.network.named_parameters())
    for name, parameter in of.trained.items():
        own = name.replace(f".{of.adapter}.", f".{average.adapter}.") if of.adapter else name
        parameters[own].lerp_(parameter, 1 - decay)


def trained_state(role: BuiltRole, roles: Mapping[str, BuiltRole]) -> dict[str, Tensor]:
    """The tensors a checkpoint must hold for this role: none for a frozen one."""
    if isinstance(role.settings, Frozen):
        return {}
    if role.adapter is not None:
        return {name: parameter.data for name, parameter in role.own_parameters.items()}
    source = roles[role.settings.of] if isinstance(role.settings, Ema) else role
    parameters = dict(role.network.named_parameters())
    return {name: parameters[name].data for name in source.trained}


def lora_norms(roles: Mapping[str, BuiltRole]) -> dict[str, Tensor]:
    """`ROLE/lora_norm` = sqrt( sum over layers || alpha / rank B A ||^2 ), of each trained LoRA.

    Every rank takes part. The products stay as small as the rank: || B A ||^2 = <B'B, A A'>.
    """
    norms = {}
    for name, role in roles.items():
        if role.lora is None:
            continue
        lora, squares = adapter_weights(role), []
        for layer, part in lora.down.items():
            down, up = whole(part).float(), whole(lora.up[layer]).float()
            squares.append(((up.T @ up) * (down @ down.T)).sum())
        scale = role.lora.alpha / role.lora.rank
        norms[f"{name}/lora_norm"] = scale * torch.stack(squares).sum().sqrt()
    return norms


class DiscriminatorHead(nn.Module):
    """Attention pooling with one learned query, then two layers.

    Smaller than DMD2_wanx's stack of convolutions, and free of its dropout.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.query = nn.Parameter(torch.randn(1, 1, dim) * dim**-0.5)
        self.pool = nn.MultiheadAttention(dim, num_heads=1, batch_first=True)
        self.logit = nn.Sequential(nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, 1))

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens [B, L, D] -> logits [B]."""
        tokens = self.norm(tokens)
        pooled, _ = self.pool(self.query.expand(tokens.shape[0], -1, -1), tokens, tokens)
        logits: Tensor = self.logit(pooled[:, 0])
        return logits[:, 0].float()
