"""What methods that train on a reward share: a student on top of a model, and its rollouts."""

from typing import Self, TypeVar, cast

from pydantic import Field, model_validator
from torch import Tensor

from pipelines.recipe import SamplerSpec
from pipelines.sampling.denoiser import Denoiser, DenoiserCall, check_guidance, guide
from trainers.algorithm import Algorithm, Batch
from trainers.settings.run import AlgorithmConfig, Frozen, Lora, Trainable


class RewardConfig(AlgorithmConfig):
    """What the `Config` of such a method extends."""

    student: Trainable = Trainable(lora=Lora(), learning_rate=1e-4)
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
        """None; ValueError for a sampler of another kind of student."""
        check_guidance(cast(Denoiser, self.roles["student"]), self.rollout_sampler)
        return None

    @property
    def rollout_sampler(self) -> SamplerSpec:
        """How the student is sampled while it trains."""
        sampler = self.config.sampler or self.own_sampler
        assert sampler is not None
        return sampler

    def guided(self, role: str, batch: Batch) -> DenoiserCall:
        """A role as the rollout's sampler wants it called."""
        model = self.network(role, batch)
        return guide(model, self.rollout_sampler, batch.negative_prompt_embeds)

    def reward(self, latents: Tensor, prompts: tuple[str, ...]) -> Tensor:
        """The run's reward of latents [B, C, F, H, W]. [B] fp32."""
        assert self.score is not None  # the configuration has been checked
        return self.score(latents, prompts)
