"""What methods that train on a reward share: a student on top of a model, and that model."""

from typing import Self

from pydantic import Field, model_validator

from trainers.config import AlgorithmConfig, Frozen, Lora, Trainable


class RewardConfig(AlgorithmConfig):
    """What the `Config` of such a method extends."""

    student: Trainable = Trainable(lora=Lora(), learning_rate=1e-4)
    teacher: Frozen = Field(Frozen(), description="The student before the reward.")
    kl_weight: float = Field(0.0, ge=0, description="Of the distance to the teacher's velocity.")

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
