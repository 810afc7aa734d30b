"""The configuration tree of a training run: one for YAML, command line and form.

Precedence: class defaults < preset file < `key=value`. An unknown key is an error that names the
key. This module imports no torch, so that the web process can read and check a configuration.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

import yaml
from pydantic import Field

from pipelines.recipe import Strict


class Lora(Strict):
    """A low-rank adapter instead of full weights."""

    rank: int = Field(16, ge=1, le=1024)
    alpha: float = Field(16.0, gt=0, description="The adapter's scale is alpha / rank.")
    targets: tuple[str, ...] = Field(
        ("to_q", "to_k", "to_v", "to_out.0"),
        description="Ends of the names of the layers to adapt.",
    )


class Trainable(Strict):
    """A network that the run trains, with its optimizer (AdamW)."""

    lora: Lora | None = Field(None, description="Train an adapter on the frozen base.")
    learning_rate: float = Field(1e-5, gt=0, le=1)
    final_learning_rate: float | None = Field(
        None, ge=0, description="Cosine decay ends here; empty keeps the rate constant."
    )
    warmup_steps: int = Field(0, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)


class Frozen(Strict):
    """A network that only predicts."""


class Ema(Strict):
    """An exponential moving average of a trained role.

    What the run samples and exports where it exists.
    """

    of: str = Field("student", description="The role that is averaged.")
    decay: float = Field(0.999, ge=0, lt=1)


Role = Trainable | Frozen | Ema


class AlgorithmConfig(Strict):
    """What every method's `Config` extends.

    A field whose type is a Role declares a role of that name.
    """

    def roles(self) -> dict[str, Role]:
        """The declared roles by name, in order of declaration."""
        fields = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: v for name, v in fields.items() if isinstance(v, Trainable | Frozen | Ema)}


class PreparedData(Strict):
    """Latents and prompt embeddings on disk, as `trainers.data.PreparedWriter` writes them."""

    source: Literal["prepared"] = "prepared"
    folder: Path
    batch_size: int = Field(1, ge=1, description="Samples a rank and micro-batch.")


class Stage(Strict):
    """One stretch of a curriculum over rendered clips."""

    until_step: int = Field(gt=0)
    num_frames: int = Field(1, ge=1)
    crop: int = Field(
        64, ge=16, description="Side of the square cut out around the shape, in pixels."
    )
    batch_size: int = Field(16, ge=1, description="Clips a rank and micro-batch.")


class ShapesData(Strict):
    """Clips of the shapes world, rendered when they are needed."""

    source: Literal["shapes"] = "shapes"
    size: int = Field(64, ge=32, multiple_of=16, description="Side of the rendered frame.")
    num_frames: int = Field(17, ge=1, description="Frames of the rendered clip.")
    stages: tuple[Stage, ...] = Field(
        min_length=1, description="Short crops first, whole clips last."
    )


class Samples(Strict):
    """Videos drawn while training, always with the same prompts and seed."""

    every: int = Field(0, ge=0, description="Steps between samples; 0 draws none.")
    prompts: tuple[str, ...] = ()
    seed: int = Field(0, ge=0)
    num_inference_steps: int = Field(30, ge=1)
    guidance_scale: float = Field(5.0, ge=0)


AlgorithmT = TypeVar("AlgorithmT", bound=AlgorithmConfig)


class TrainConfig(Strict, Generic[AlgorithmT]):
    """One run. The file alone reproduces it."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    method: str = Field(description="A file in trainers/algorithms/.")
    algorithm: AlgorithmT
    model: str = Field("tiny-wan", description="Registry name or folder of the base model.")
    data: Annotated[PreparedData | ShapesData, Field(discriminator="source")]
    seed: int = Field(0, ge=0)
    num_steps: int = Field(gt=0)
    accumulation_steps: int = Field(1, ge=1, description="Micro-batches a step.")
    precision: Literal["fp32", "bf16"] = Field(
        "bf16", description="Compute type; weights stay fp32."
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
    log_every: int = Field(10, ge=1)
    save_every: int = Field(500, ge=1)
    keep_checkpoints: int = Field(2, ge=1)
    samples: Samples = Samples()


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
