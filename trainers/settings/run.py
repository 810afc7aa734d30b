"""The configuration tree of a training run: one for YAML, command line and form.

Precedence: class defaults < preset file < `key=value`. An unknown key is an error that names the
key.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Generic, Literal, Self, TypeVar

import yaml
from pydantic import Field, model_validator

from pipelines.recipe import Adapter
from pipelines.strict import Strict
from trainers.settings.data import PreparedData, PromptData, ShapesData
from trainers.settings.reward import RewardChoice
from trainers.settings.roles import AlgorithmConfig
from trainers.settings.validation import Validation

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"  # a run's name is the name of its folder


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


def apply_overrides(tree: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
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
