"""What a run trains on, as settings: a part of `trainers.settings.run`."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from pipelines.geometry import WAN21
from pipelines.strict import Strict


def _frames(num_frames: int) -> int:
    if problem := WAN21.frames_problem(num_frames):
        raise ValueError(problem)
    return num_frames


# What holds for every model; a model with a coarser geometry refuses more where it is known.
Side = Annotated[int, Field(ge=WAN21.size_multiple, multiple_of=WAN21.size_multiple)]  # pixels
NumFrames = Annotated[int, Field(ge=1), AfterValidator(_frames)]


class PreparedData(Strict):
    """Latents and prompt embeddings on disk, as `python -m trainers prepare` writes them."""

    source: Literal["prepared"] = "prepared"
    folder: Path
    batch_size: int = Field(1, ge=1, description="Samples a rank and micro-batch.")


class Bucket(Strict):
    """One size of video among several that a run trains on."""

    width: Side
    height: Side
    num_frames: NumFrames = Field(description="4n+1")
    batch_size: int | None = Field(None, ge=1, description="Empty: the data's.")


class PromptData(Strict):
    """Prompts only, or with first frames: data-free distillation makes its own latents."""

    source: Literal["prompts"] = "prompts"
    file: Path = Field(
        description="One prompt a line; lines that start with # are skipped. For models that "
        'continue images a .jsonl with {"prompt": ..., "image": ...} a line.'
    )
    batch_size: int = Field(1, ge=1, description="Prompts a rank and micro-batch.")
    width: Side | None = Field(None, description="Empty: the model's own.")
    height: Side | None = Field(None, description="Empty: the model's own.")
    num_frames: NumFrames | None = Field(None, description="4n+1; empty: the model's own.")
    buckets: tuple[Bucket, ...] = Field(
        (), description="Several sizes instead of one, by turns: every step has one of them."
    )

    @model_validator(mode="after")
    def _one_way_to_say_the_size(self) -> Self:
        for name in ("width", "height", "num_frames") if self.buckets else ():
            if getattr(self, name) is not None:
                raise ValueError(f"{name} is not read beside buckets; put it into each of them")
        return self


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
