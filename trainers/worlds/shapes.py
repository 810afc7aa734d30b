"""The shapes world: a caption grammar and its renderer; `checker` reads captions back.

Captions: `a {size} {colour} {shape} {motion} on a {background} background`. Start position, path
length and a jitter of the radius are random and unstated, so that a generator's diversity can be
measured on them. The radius is half the width of the shape's bounding box.
"""

import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from runpy import run_module

import numpy as np
from numpy.typing import NDArray

SIZES = {"small": 0.11, "large": 0.19}  # nominal radius as a share of the frame's shorter side
COLOURS = {
    "red": (230, 38, 38),
    "green": (38, 204, 51),
    "blue": (51, 89, 242),
    "yellow": (242, 217, 38),
    "purple": (166, 64, 217),
    "white": (242, 242, 242),
}
SHAPES = ("circle", "square", "triangle")
DIRECTIONS = {
    "moving left": (-1, 0),
    "moving right": (1, 0),
    "moving up": (0, -1),
    "moving down": (0, 1),
}
GROWTH = {"growing": 1, "shrinking": -1}
MOTIONS = (*DIRECTIONS, *GROWTH)
BACKGROUNDS = {
    "black": (13, 13, 18),
    "grey": (89, 89, 94),
    "teal": (13, 77, 82),
    "navy": (20, 26, 89),
}
SLOTS = ("size", "colour", "shape", "motion", "background")

# Colour, shape, motion triples that training never sees: 11 of 108, spread so that every value
# stays
# seen.
HELD_OUT = frozenset(
    {
        ("red", "square", "growing"),
        ("red", "triangle", "moving down"),
        ("green", "circle", "moving down"),
        ("green", "circle", "moving left"),
        ("blue", "square", "moving up"),
        ("yellow", "triangle", "shrinking"),
        ("yellow", "square", "moving right"),
        ("purple", "triangle", "moving left"),
        ("purple", "triangle", "shrinking"),
        ("white", "square", "moving right"),
        ("white", "circle", "moving up"),
    }
)

RADIUS_JITTER = 0.10  # the radius is nominal times 1 +- this
RADIUS_CHANGE = 0.35  # growing and shrinking sweep the radius by +- this
PATH_LENGTHS = (0.28, 0.42)  # share of the shorter side
MARGIN = 0.02  # the shape keeps this share of the side away from the frame's edge


@dataclass(frozen=True)
class Caption:
    """The five slots a caption states."""

    size: str
    colour: str
    shape: str
    motion: str
    background: str

    def __str__(self) -> str:
        shown = f"{self.size} {self.colour} {self.shape} {self.motion}"
        return f"a {shown} on a {self.background} background"

    @property
    def held_out(self) -> bool:
        """Whether training must not see this caption."""
        return (self.colour, self.shape, self.motion) in HELD_OUT

    @classmethod
    def parse(cls, text: str) -> "Caption":
        """Reads a caption; ValueError for text outside the grammar."""
        alternatives: tuple[Iterable[str], ...] = (SIZES, COLOURS, SHAPES, MOTIONS, BACKGROUNDS)
        groups = [
            f"(?P<{slot}>{'|'.join(values)})"
            for slot, values in zip(SLOTS, alternatives, strict=True)
        ]
        match = re.fullmatch(
            "a {} {} {} {} on a {} background".format(*groups), text.strip().lower()
        )
        if match is None:
            raise ValueError(
                f"caption {text!r} is not in the shapes grammar; write for example "
                "'a small red circle moving left on a black background'"
            )
        return cls(**match.groupdict())


def all_captions() -> list[Caption]:
    """The 864 captions, in a fixed order."""
    return [
        Caption(*slots) for slots in itertools.product(SIZES, COLOURS, SHAPES, MOTIONS, BACKGROUNDS)
    ]


def training_captions() -> list[Caption]:
    """The captions whose (colour, shape, motion) triple is not held out."""
    return [caption for caption in all_captions() if not caption.held_out]


def render(
    caption: Caption,
    seed: int,
    num_frames: int = 17,
    height: int = 64,
    width: int = 64,
    frames: slice = slice(None),
) -> NDArray[np.float32]:
    """An anti-aliased clip of the caption. [F, H, W, 3] in [0, 1].

    The same arguments give the same pixels. `frames` selects which of the `num_frames` are drawn.
    """
    rng = np.random.default_rng(seed)
    side = min(height, width)
    progress = np.linspace(0, 1, num_frames) if num_frames > 1 else np.full(1, 0.5)
    radius = SIZES[caption.size] * (1 + RADIUS_JITTER * rng.uniform(-1, 1)) * side
    radii = radius * (1 + RADIUS_CHANGE * GROWTH.get(caption.motion, 0) * (2 * progress - 1))
    direction = np.array(DIRECTIONS.get(caption.motion, (0, 0)))
    path = direction * rng.uniform(*PATH_LENGTHS) * side
    reach = np.abs(path) / 2 + radii.max() + MARGIN * side
    middle = rng.uniform(reach, np.array([width, height]) - reach)
    centres = middle + (progress[:, None] - 0.5) * path
    inside = coverage(caption.shape, centres[frames], radii[frames], height, width)[..., None]
    background, colour = (
        np.array(BACKGROUNDS[caption.background]),
        np.array(COLOURS[caption.colour]),
    )
    return ((background * (1 - inside) + colour * inside) / 255).astype(np.float32)


def coverage(
    shape: str, centres: NDArray[np.float64], radii: NDArray[np.float64], height: int, width: int
) -> NDArray[np.float64]:
    """Share of each pixel inside the shape.

    Centres [F, 2] as x, y; radii [F], pixels -> [F, H, W].
    """
    y, x = np.mgrid[0:height, 0:width] + 0.5
    dx, dy = x - centres[:, 0, None, None], y - centres[:, 1, None, None]
    radius = radii[:, None, None]
    if shape == "circle":
        distance = np.hypot(dx, dy) - radius
    elif shape == "square":
        distance = np.maximum(np.abs(dx), np.abs(dy)) - radius
    else:  # apex at the top; the sides fall 2 down for 1 across
        distance = np.maximum(dy - radius, (2 * np.abs(dx) - dy - radius) / np.sqrt(5))
    return np.clip(0.5 - distance, 0, 1)


if __name__ == "__main__":  # an earlier name of the command
    run_module("trainers.worlds", run_name="__main__", alter_sys=True)
