"""Which reward a run asks, as settings: a part of `trainers.settings.run`."""

from collections.abc import Iterator
from typing import Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from pipelines.strict import Strict

Frames = Literal["first", "random", "all"]
NUM_RANDOM_FRAMES = 4


class RewardChoice(Strict):
    """A reward and how much of a video it sees; in a file its name alone is enough."""

    model_config = ConfigDict(json_schema_extra={"shorthand": "kind"})  # for forms

    kind: str = Field(description="A file in trainers/rewards/.")
    frames: Frames | None = Field(
        None,
        description="first: decodes one latent frame only. random: a few frames, drawn each time. "
        "all: the whole clip. Empty: the reward's own.",
    )
    num_random_frames: int | None = Field(
        None, ge=1, description=f"With frames random; empty there: {NUM_RANDOM_FRAMES}."
    )
    settings: dict[str, Any] = Field({}, description="The reward's own, {name: value, ...}.")

    @model_validator(mode="before")
    @classmethod
    def _by_its_name(cls, given: Any) -> Any:
        return {"kind": given} if isinstance(given, str) else given

    @model_validator(mode="after")
    def _frames_that_are_counted(self) -> Self:
        if self.num_random_frames is not None and self.frames != "random":
            raise ValueError("num_random_frames is read with frames random; set that or leave it")
        return self

    def kinds(self) -> set[str]:
        """The rewards that are asked, those inside a weighted sum too."""
        return {self.kind, *_kinds_inside(self.settings)}


def _kinds_inside(settings: Any) -> Iterator[str]:
    if isinstance(settings, dict):
        if isinstance(settings.get("kind"), str):
            yield settings["kind"]
        settings = list(settings.values())
    if isinstance(settings, list | tuple):
        for each in settings:
            yield from _kinds_inside(each)
