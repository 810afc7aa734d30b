"""The configuration tree of a training run: one for YAML, command line and form.

Precedence: class defaults < preset file < `key=value`. An unknown key is an error that names the
key. This module imports no torch, so that the web process can read and check a configuration.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Generic, Literal, Self, TypeVar

import yaml
from pydantic import Field, model_validator

from pipelines.recipe import Adapter, Strict
from trainers.settings.data import PreparedData, PromptData, ShapesData
from trainers.settings.reward import RewardChoice
from trainers.settings.validation import Validation

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"  # a run's name is the name of its folder


class Lora(Strict):
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

    lora: Lora | None = Field(
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


class Parallel(Strict):
    """What the ranks that torchrun starts are for; the three sizes multiply to their number."""

    shard: int | None = Field(
        None, ge=1, description="Ranks that a copy of the weights is split over; empty: all others."
    )
    replicate: int = Field(
        1, ge=1, description="Copies of the weights (HSDP): one a node spares the network between."
    )
    context: int = Field(
        1,
        ge=1,
        description="Ranks that share a video's tokens; its weights are split over them too.",
    )
    cpu_offload: bool = Field(
        False, description="Keep weights, gradients and optimizers in the CPU's memory."
    )


AlgorithmT = TypeVar("AlgorithmT", bound=AlgorithmConfig)


class TrainConfig(Strict, Generic[AlgorithmT]):
    """One run. The file alone reproduces it."""

    name: str = Field(pattern=NAME_PATTERN)
    method: str = Field(description="A file in trainers/algorithms/.")
    algorithm: AlgorithmT
    model: str = Field("tiny-wan", description="Registry name or folder of the model to start at.")
    adapters: tuple[Adapter, ...] = Field(
        (), description="LoRAs on the model: they are distilled with it."
    )
    data: Annotated[PreparedData | PromptData | ShapesData, Field(discriminator="source")]
    seed: int = Field(0, ge=0)
    num_steps: int = Field(gt=0)
    accumulation_steps: int = Field(1, ge=1, description="Micro-batches a step.")
    precision: Literal["fp32", "bf16"] = Field(
        "bf16", description="Compute type; what trains stays fp32."
    )
    device: Literal["auto", "cpu", "cuda"] = "auto"
    attention_backend: str | None = Field(
        None,
        description="One of diffusers' attention backends, such as flash or _native_math (the "
        "fastest on a CPU for short sequences); empty leaves the choice to PyTorch.",
    )
    compile_blocks: bool = Field(
        False, description="Compile the transformer's blocks; a CPU needs a C++ compiler for it."
    )
    activation_checkpointing: bool = Field(
        False, description="Run blocks again in backward instead of keeping what they computed."
    )
    parallel: Parallel = Parallel()
    log_every: int = Field(10, ge=1)
    save_every: int = Field(500, ge=1)
    keep_checkpoints: int = Field(2, ge=1)
    validation: Validation | None = Field(None, description="Empty: no videos while training.")
    reward: RewardChoice | None = Field(None, description="For methods that read one.")

    @model_validator(mode="after")
    def _fits_the_method(self) -> Self:
        asked = self.algorithm.reward_setting()
        if asked is not None and self.reward is None:
            where = f"algorithm.{asked}" if asked else "reward"
            raise ValueError(f"{where}: there is no reward; name one in `reward`")
        if asked is None and self.reward is not None:
            raise ValueError(f"reward: {self.method} as it is set reads none; leave reward out")
        held_out = self.validation.held_out if self.validation else None
        if self.validation and self.validation.hacking_patience and self.reward is None:
            raise ValueError(
                f"validation.hacking_patience: {self.method} as it is set trains on no reward; "
                "leave it out"
            )
        trained_on = held_out.kinds() & self.reward.kinds() if held_out and self.reward else None
        if trained_on:
            raise ValueError(
                f"validation.held_out: the run trains on {min(trained_on)}; name another reward"
            )
        teacher = self.algorithm.roles().get("teacher")
        if self.validation and self.validation.score == "drift" and teacher is None:
            raise ValueError(
                f"validation.score is drift but {self.method} has no teacher; set it to shapes, or "
                "leave it empty and set export to last"
            )
        return self


def merge(tree: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Puts `a.b=value` (YAML values) into a copy of the tree.

    ValueError where the form is wrong.
    """
    merged = yaml.safe_load(yaml.safe_dump(tree))
    for override in overrides:
        path, separator, text = override.partition("=")
        if not separator or not path:
            raise ValueError(
                f"override {override!r} must look like key=value, for example num_steps=100"
            )
        *parents, leaf = path.split(".")
        node = merged
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise ValueError(f"override {override!r}: {parent!r} holds a value, not settings")
        node[leaf] = yaml.safe_load(text)
    return merged
