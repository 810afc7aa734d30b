"""What a method is: roles in, updates out. The engine does the rest.

A method's file holds a `Config`, its losses and a class named `Method`. It never touches an
optimizer, a rank, a checkpoint or a logger.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import ClassVar, Generic, Literal, TypeVar

import torch
from torch import Tensor, nn

from trainers.config import AlgorithmConfig


@dataclass(frozen=True)
class Batch:
    """One micro-batch. A data source fills what it has; a method reads what it needs."""

    prompts: tuple[str, ...] = ()
    video: Tensor | None = None  # [B, F, C, H, W] in [0, 1]
    latents: Tensor | None = None  # [B, C, F, H, W], normalised
    prompt_embeds: Tensor | None = None  # [B, L, D], zero rows past the text
    negative_prompt_embeds: Tensor | None = None  # [1, L, D], of the empty prompt

    def to(self, device: torch.device) -> "Batch":
        """The same batch on a device."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "prompts"}
        return replace(self, **{k: v.to(device) for k, v in tensors.items() if v is not None})

    def require(self, name: str) -> Tensor:
        """The tensor of that name; ValueError where the data source has none."""
        value: Tensor | None = getattr(self, name)
        if value is None:
            raise ValueError(f"data.source: this method reads {name}, which the data source lacks")
        return value


@dataclass(frozen=True)
class Rng:
    """Two streams: `local` differs between ranks and micro-batches, `shared` is the same on all."""

    local: torch.Generator
    shared: torch.Generator

    def randn_like(self, like: Tensor) -> Tensor:
        """Standard normal noise from the local stream, drawn on the CPU so that devices agree."""
        return torch.randn(like.shape, generator=self.local).to(like)

    def rand(self, size: int, device: torch.device) -> Tensor:
        """Uniform numbers in [0, 1) from the local stream. [size] fp32."""
        return torch.rand(size, generator=self.local).to(device)


@dataclass(frozen=True)
class Loss:
    """A scalar to minimise, and figures to log (detached scalars)."""

    value: Tensor
    metrics: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Update:
    """One optimizer step: which role moves, and the loss of one micro-batch."""

    role: str
    loss: Callable[[Batch, Rng], Loss]


ConfigT = TypeVar("ConfigT", bound=AlgorithmConfig)


class Algorithm(ABC, Generic[ConfigT]):
    """A method over its roles' networks.

    `component` is the part of the base model that every role is a copy of: the transformer's roles
    are `Denoiser`s, the vae's are diffusers' own.
    """

    Config: ClassVar[type[AlgorithmConfig]]
    component: ClassVar[Literal["transformer", "vae"]] = "transformer"

    def __init__(self, config: ConfigT, roles: Mapping[str, nn.Module]):
        self.config = config
        self.roles = roles

    @abstractmethod
    def updates(self, step: int) -> Iterator[Update]:
        """The updates of one training step, in order."""
