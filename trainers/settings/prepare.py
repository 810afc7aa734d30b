"""The settings of `python -m trainers prepare`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field

from pipelines.catalog.entries import CheckpointSpec
from pipelines.geometry import WAN21, read_size
from pipelines.strict import Strict
from trainers.settings.data import NumFrames

Kind = Literal["videos", "prompts", "parquet"]
NOT_READ = {  # settings that a source would ignore
    "videos": (),
    "prompts": ("fps", "clips_per_video"),
    "parquet": ("size", "frames", "fps", "clips_per_video"),
}


def _size(text: str) -> str:
    if WAN21.problem(*read_size(text, "it"), num_frames=1):
        multiple = WAN21.size_multiple
        raise ValueError(f"is {text!r} but width and height must be multiples of {multiple}")
    return text


@dataclass(frozen=True)
class ClipShape:
    """What is cut out of videos. `sizes` are (width, height) each."""

    sizes: tuple[tuple[int, int], ...]
    num_frames: int
    fps: int
    clips_per_video: int  # at most


class PrepareSettings(Strict):
    """What the clips of a source become. What is left empty is the model's own."""

    model: str = Field(description="Its VAE and text encoder encode.")
    size: tuple[Annotated[str, AfterValidator(_size)], ...] = Field(
        (), description="WIDTHxHEIGHT; each video gets the one nearest to its shape."
    )
    frames: NumFrames | None = Field(None, description="Of a clip; 4n+1.")
    fps: int | None = Field(None, ge=1, description="Frames a second of a clip.")
    clips_per_video: int | None = Field(None, ge=1, description="At most; without: 1.")

    def complete(self, kind: Kind, own: CheckpointSpec) -> Self:
        """With the model's own values for what was left out.

        ValueError for what is not read, and for a size that the model makes no latents of.
        """
        for name in NOT_READ[kind]:
            if getattr(self, name):
                what = {"prompts": "prompts alone", "parquet": "encoded samples"}[kind]
                option = name.replace("_", "-")
                raise ValueError(f"{option}: it means nothing for {what}; leave --{option} out")
        if kind == "prompts" and len(self.size) > 1:
            raise ValueError("size: prompts alone are prepared for one; give --size once")
        own_values = {"size": (f"{own.width}x{own.height}",), "frames": own.num_frames}
        own_values |= {"fps": own.fps, "clips_per_video": 1}
        missing = {n: v for n, v in own_values.items() if not getattr(self, n)}
        kept = {n: v for n, v in missing.items() if n not in NOT_READ[kind]}
        complete = self.model_copy(update=kept)
        for width, height in complete.sizes:
            num_frames = complete.frames or own.num_frames
            if problem := own.geometry.problem(width, height, num_frames):
                raise ValueError(f"size: {problem}")
        return complete

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """(width, height) each."""
        return tuple(read_size(text) for text in self.size)

    @property
    def clips(self) -> ClipShape:
        """Of complete settings for videos."""
        assert self.frames is not None
        assert self.fps is not None
        assert self.clips_per_video is not None
        return ClipShape(self.sizes, self.frames, self.fps, self.clips_per_video)

    def identity(self) -> dict[str, Any]:
        """What must not change between a stop and a restart, beside the items and the weights."""
        return self.model_dump(mode="json", include=set(PrepareSettings.model_fields))


class PrepareConfig(PrepareSettings):
    """The config.yaml of a preparation: it lies in the folder that it makes, as that of a run."""

    method: Literal["prepare"] = "prepare"
    name: str
    source: Path = Field(description="A folder, list or file; see trainers.sources.listing.")
    num_steps: int = Field(0, ge=0, description="Items of the source, that progress is shown of.")
