"""What a run draws and measures while it trains: a part of `trainers.settings.run`."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pipelines.strict import Strict
from trainers.settings.data import NumFrames, Side
from trainers.settings.reward import RewardChoice


class Alarms(Strict):
    """How far a figure may drift from the teacher's; beyond it an `alarm` event is written.

    Two sets of 16 clips of TinyWan itself differ by up to 0.0004 in clipped and 0.05 in static
    share, 1.02 in saturation, 1.04 in contrast, 1.1 in motion, and, with two seeds, 2.4 in
    diversity (99 of 100 draws).
    """

    clipped_share: float = Field(
        0.05, gt=0, le=1, description="Difference: 0.05 burns a visible patch into the picture."
    )
    static_share: float = Field(0.2, gt=0, le=1, description="Difference: every fifth frame.")
    saturation: float = Field(
        1.2, gt=1, description="Ratio, either way: seen at once in videos side by side."
    )
    contrast: float = Field(1.2, gt=1, description="Ratio, either way: as for saturation.")
    motion: float = Field(1.5, gt=1, description="Ratio, either way: well above what seeds do.")
    diversity: float = Field(3.0, gt=1, description="Ratio, either way: above what seeds do.")


class Validation(Strict):
    """Videos drawn while training, always of the same prompts and seeds, beside the teacher's.

    They are measured, and the checkpoint with the best score is kept.
    """

    every: int = Field(ge=1, description="Steps between validations; the last step has one too.")
    prompts: tuple[str, ...] = Field(min_length=1)
    images: tuple[Path, ...] = Field(
        (), description="First frames, one for each prompt, where the model continues images."
    )
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field((0, 1), min_length=1)
    num_inference_steps: int | None = Field(
        None, ge=1, le=1000, description="Of the student; empty: its method's own."
    )
    guidance_scale: float | None = Field(
        None, ge=0, le=30, description="Of the student; empty: its method's own."
    )
    width: Side | None = Field(None, description="Empty: the model's own.")
    height: Side | None = Field(None, description="Empty: the model's own.")
    num_frames: NumFrames | None = Field(None, description="4n+1; empty: the model's own.")
    held_out: RewardChoice | None = Field(
        None, description="A reward that the run never trains on, to see through hacking."
    )
    hacking_patience: int | None = Field(
        None,
        ge=1,
        description="Validations in a row with more of the trained and less of the held-out "
        "reward that end the run.",
    )
    score: Literal["drift", "shapes", "held_out"] | None = Field(
        "drift",
        description="drift: minus the distance to the teacher (trainers/validation/drift.py). "
        "shapes: for captions of the shapes world, the mean of prompt and slot accuracy, minus the "
        "distance where there is a teacher. held_out: the held-out reward. Empty ranks no "
        "checkpoints.",
    )
    export: Literal["best", "last"] = Field("best", description="Which checkpoint is exported.")
    patience: int | None = Field(
        None, ge=1, description="Validations without a better score that end the run."
    )
    alarms: Alarms = Alarms()

    @model_validator(mode="after")
    def _an_image_for_each_prompt(self) -> Self:
        if self.images and len(self.images) != len(self.prompts):
            raise ValueError(
                f"images lists {len(self.images)} files for {len(self.prompts)} prompts; give each "
                "prompt its first frame"
            )
        return self

    @model_validator(mode="after")
    def _score_for_what_reads_it(self) -> Self:
        if self.score is None and self.export == "best":
            raise ValueError("export is best but there is no score; set export to last")
        if self.score is None and self.patience is not None:
            raise ValueError("patience needs a score; set score or leave patience out")
        if self.held_out is None and self.score == "held_out":
            raise ValueError("score is held_out but there is no such reward; name one in held_out")
        if self.held_out is None and self.hacking_patience is not None:
            raise ValueError("hacking_patience needs a held-out reward; name one in held_out")
        return self
