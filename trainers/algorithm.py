"""What a method is: roles in, updates out. The engine does the rest.

A method's file holds a `Config`, its losses and a class named `Method`. It never touches an
optimizer, a rank, a checkpoint or a logger.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Generic, Literal, Protocol, Self, TypeVar, cast, overload

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from pipelines.recipe import SamplerName, SamplerSpec
from pipelines.sampling.denoiser import Denoiser, DenoiserCall
from pipelines.sampling.flow import velocity_from_denoised
from pipelines.sampling.guidance import guidance_problem, guide
from pipelines.sampling.prompt import Prompt
from trainers.settings.roles import AlgorithmConfig, Frozen, Guidance, LoraSettings, Trainable


@dataclass(frozen=True)
class Batch:
    """One micro-batch. A data source fills what it has; a method reads what it needs."""

    prompts: tuple[str, ...] = ()
    video: Tensor | None = None  # [B, F, C, H, W] in [0, 1]
    latents: Tensor | None = None  # [B, C, F, H, W], normalised
    prompt: Prompt | None = None  # zero rows past the text; with images where the model reads them
    negative_embeds: Tensor | None = None  # [1, L, D], of the model's negative prompt
    latent_shape: tuple[int, ...] = ()  # (C, F, H, W): what to make where there are no latents

    def to(self, device: torch.device) -> "Batch":
        """The same batch on a device."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        moved: dict[str, Any] = {
            name: value.to(device)
            for name, value in values.items()
            if isinstance(value, Tensor | Prompt)
        }
        return replace(self, **moved)

    def repeated(self, times: int) -> "Batch":
        """Every prompt `times` times, copies side by side; without video and latents."""
        prompts = tuple(prompt for prompt in self.prompts for _ in range(times))
        prompt = self.require("prompt").repeated(times)
        return replace(self, prompts=prompts, prompt=prompt, video=None, latents=None)

    @overload
    def require(self, name: Literal["prompt"]) -> Prompt: ...

    @overload
    def require(self, name: Literal["video", "latents", "negative_embeds"]) -> Tensor: ...

    def require(self, name: str) -> Tensor | Prompt:
        """The field of that name; ValueError where the data source has none."""
        value: Tensor | Prompt | None = getattr(self, name)
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

    def randn(self, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """Standard normal noise of a shape from the local stream, fp32."""
        return torch.randn(shape, generator=self.local).to(device)

    def uniform(self, size: int, low: float, high: float, device: torch.device) -> Tensor:
        """Uniform numbers in [low, high) from the local stream. [size] fp32."""
        return low + (high - low) * self.rand(size, device)

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


class Score(Protocol):
    """A reward as methods see it: latents [B, C, F, H, W] and B prompts -> [B] fp32."""

    @property
    def differentiable(self) -> bool: ...

    def __call__(self, latents: Tensor, prompts: tuple[str, ...]) -> Tensor: ...


ConfigT = TypeVar("ConfigT", bound=AlgorithmConfig)


class Algorithm(ABC, Generic[ConfigT]):
    """A method over its roles' networks.

    `component` is the part of the base model that every role is a copy of: the transformer's roles
    are `Denoiser`s, the vae's are diffusers' own.
    """

    Config: ClassVar[type[AlgorithmConfig]]
    component: ClassVar[Literal["transformer", "vae"]] = "transformer"

    def __init__(
        self,
        config: ConfigT,
        roles: Mapping[str, nn.Module],
        score: Score | None = None,
        own_sampler: SamplerSpec | None = None,
    ):
        """`score` is the run's reward, `own_sampler` that of the run's model."""
        self.config = config
        self.roles = roles
        self.score = score
        self.own_sampler = own_sampler
        problem = self.problem()
        if problem is not None:
            raise ValueError(problem)

    def problem(self) -> str | None:
        """One sentence on why these roles cannot be trained with these settings, or None."""
        return None

    def sampler(self, own: SamplerSpec) -> SamplerSpec:
        """How the student is to be sampled; `own` is its model's sampler. Goes with the export."""
        return own

    @abstractmethod
    def updates(self, step: int) -> Iterator[Update]:
        """The updates of one training step, in order.

        Only the first may ask the reward: where it fails, nothing of the step has been done yet,
        and the checkpoint is that of a whole step.
        """

    def denoiser(self, role: str) -> Denoiser:
        """A role's transformer as the model call."""
        return cast(Denoiser, self.roles[role])

    # ---------------------------------------------------------------- guidance, for distillation

    @property
    def student_embeds_guidance(self) -> bool:
        """Whether the student takes the guidance scale as an input."""
        return self.denoiser("student").embeds_guidance

    def guidance_problem(self, guidance: Guidance) -> str | None:
        """Why the student cannot learn this range of scales, or None."""
        if guidance.min_scale == guidance.max_scale or self.student_embeds_guidance:
            return None
        return (
            "algorithm.guidance: this student does not take guidance as an input, so min_scale "
            "and max_scale must be equal; or start at a model from cfg_distill"
        )

    def draw_guidance(self, guidance: Guidance, latents: Tensor, rng: Rng) -> Tensor:
        """A scale for each sample. [B]."""
        batch_size = latents.shape[0]
        return rng.uniform(batch_size, guidance.min_scale, guidance.max_scale, latents.device)

    def student_scale(self, scale: Tensor) -> Tensor | None:
        """What the student is told about the guidance [B]: nothing, where it has no such input."""
        return scale if self.student_embeds_guidance else None

    def distilled_sampler(
        self, name: SamplerName, num_inference_steps: int, flow_shift: float, guidance_scale: float
    ) -> SamplerSpec:
        """A few-step sampler with the guidance inside the student, asked for where it can be."""
        embeds = self.student_embeds_guidance
        return SamplerSpec(
            name=name,
            num_inference_steps=num_inference_steps,
            flow_shift=flow_shift,
            guidance_mode="embedded" if embeds else "off",
            guidance_scale=guidance_scale if embeds else 1.0,
        )


class RewardConfig(AlgorithmConfig):
    """What the `Config` of such a method extends."""

    student: Trainable = Trainable(lora=LoraSettings(), learning_rate=1e-4)
    teacher: Frozen = Field(Frozen(), description="The student before the reward.")
    kl_weight: float = Field(0.0, ge=0, description="Of the distance to the teacher's velocity.")
    sampler: SamplerSpec | None = Field(
        None, description="Of the rollout; empty: the model's own. The export keeps the own."
    )

    @model_validator(mode="after")
    def _teacher_of_this_run(self) -> Self:
        if self.teacher.model is not None:
            raise ValueError("teacher.model: the teacher is the run's own model; leave it empty")
        return self

    def reward_setting(self) -> str | None:
        """The method is nothing without a reward."""
        return ""

    @property
    def on_top(self) -> bool:
        """A distilled model keeps what it has learned."""
        return True


RewardConfigT = TypeVar("RewardConfigT", bound=RewardConfig)


class RewardMethod(Algorithm[RewardConfigT]):
    """What the `Method` of such a file extends."""

    def problem(self) -> str | None:
        """A sampler of another kind of student."""
        return guidance_problem(self.denoiser("student"), self.rollout_sampler)

    @property
    def rollout_sampler(self) -> SamplerSpec:
        """How the student is sampled while it trains."""
        sampler = self.config.sampler or self.own_sampler
        assert sampler is not None
        return sampler

    def guided(self, role: str, batch: Batch) -> DenoiserCall:
        """A role as the rollout's sampler wants it called."""
        return guide(self.denoiser(role), self.rollout_sampler, batch.negative_embeds)

    def guided_velocity(
        self, role: str, batch: Batch, noisy_latents: Tensor, sigma: Tensor
    ) -> Tensor:
        """The velocity of a role as `guided` calls it. Shapes as latents, sigma [B]."""
        denoised = self.guided(role, batch)(noisy_latents, sigma, batch.require("prompt"))
        return velocity_from_denoised(noisy_latents, denoised, sigma)

    def reward(self, latents: Tensor, prompts: tuple[str, ...]) -> Tensor:
        """The run's reward of latents [B, C, F, H, W]. [B] fp32."""
        assert self.score is not None  # the configuration has been checked
        return self.score(latents, prompts)
