"""The networks of a method and how each is trained, as settings."""

from typing import Self

from pydantic import Field, model_validator

from pipelines.strict import Strict


class LoraSettings(Strict):
    """A low-rank adapter instead of full weights."""

    rank: int = Field(16, ge=1, le=1024)
    alpha: float = Field(16.0, gt=0, description="The adapter's scale is alpha / rank.")
    targets: tuple[str, ...] = Field(
        ("to_q", "to_k", "to_v", "to_out.0"),
        description="Ends of the names of the layers to adapt.",
    )


class Pull(Strict):
    """After each update of another role, this one moves a little toward it."""

    toward: str = Field("student", description="The role whose updates pull this one along.")
    decay: float = Field(0.97, ge=0, lt=1, description="What stays of this role each time.")


class Trainable(Strict):
    """A network that the run trains, with its optimizer (AdamW). It starts as the run's model."""

    lora: LoraSettings | None = Field(
        None, description="Train an adapter on the base that all such roles share."
    )
    start_from: str | None = Field(
        None, description="A student on the same base, by registry name, to start from instead."
    )
    learning_rate: float = Field(1e-5, gt=0, le=1)
    final_learning_rate: float | None = Field(
        None, ge=0, description="Cosine decay ends here; empty keeps the rate constant."
    )
    warmup_steps: int = Field(0, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    pull: Pull | None = None


class GuidedTrainable(Trainable):
    """A trained network that gains guidance as an input, where its model has none."""


class Discriminator(Trainable):
    """A small head that tells encoded videos from the student's by the teacher's features."""

    @model_validator(mode="after")
    def _is_no_copy_of_the_model(self) -> Self:
        for name in ("lora", "start_from", "pull"):
            if getattr(self, name) is not None:
                raise ValueError(f"{name}: a discriminator is no copy of the model; leave it out")
        return self


class Frozen(Strict):
    """A network that only predicts."""

    model: str | None = Field(
        None, description="Registry name or folder of another model; empty is the run's own."
    )


class Ema(Strict):
    """An exponential moving average of a trained role, moved after each of its updates.

    What the run samples and exports where it exists.
    """

    of: str = Field("student", description="The role that is averaged.")
    decay: float = Field(0.999, ge=0, lt=1)
    start_step: int = Field(0, ge=0, description="Until then it equals the role.")


Role = Trainable | Frozen | Ema


class Guidance(Strict):
    """The guidance scales a teacher is asked at, in the standard form; drawn evenly in between."""

    min_scale: float = Field(1.0, ge=1, le=30)
    max_scale: float = Field(8.0, ge=1, le=30)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_scale > self.max_scale:
            raise ValueError(f"min_scale {self.min_scale:g} is above max_scale {self.max_scale:g}")
        return self

    def nearest(self, guidance_scale: float) -> float:
        """The scale in the range that is nearest to a model's own."""
        return min(max(guidance_scale, self.min_scale), self.max_scale)


class AlgorithmConfig(Strict):
    """What every method's `Config` extends.

    A field whose type is a Role declares a role of that name.
    """

    def roles(self) -> dict[str, Role]:
        """The declared roles by name, in order of declaration."""
        fields = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: v for name, v in fields.items() if isinstance(v, Trainable | Frozen | Ema)}

    def reward_setting(self) -> str | None:
        """The setting that asks for a reward, "" for the method itself, None where nothing does."""
        return None

    @property
    def on_top(self) -> bool:
        """Whether a trained LoRA goes on top of the run's model, a student's own LoRA merged in.

        Else it starts as that LoRA and replaces it.
        """
        return False
