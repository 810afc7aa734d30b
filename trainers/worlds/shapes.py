"""The shapes world: a caption grammar, its renderer, and a checker that reads decoded frames only.

Captions: `a {size} {colour} {shape} {motion} on a {background} background`. Start position, path length and a jitter of
the radius are random and unstated, so a generator's diversity can be measured on them. The radius is half the width of
the shape's bounding box.

    python -m trainers.worlds.shapes render --caption "..." --seed 1 --out x.mp4
    python -m trainers.worlds.shapes check x.mp4 --caption "..."
"""

import itertools
import re
from dataclasses import dataclass
from pathlib import Path

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

# Colour, shape, motion triples that training never sees: 11 of 108, spread so that every pair of values stays seen.
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
        return f"a {self.size} {self.colour} {self.shape} {self.motion} on a {self.background} background"

    @property
    def held_out(self) -> bool:
        """Whether training must not see this caption."""
        return (self.colour, self.shape, self.motion) in HELD_OUT

    @classmethod
    def parse(cls, text: str) -> "Caption":
        """Reads a caption; ValueError for text outside the grammar."""
        alternatives = (SIZES, COLOURS, SHAPES, MOTIONS, BACKGROUNDS)
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
    """An anti-aliased clip of the caption. [F, H, W, 3] in [0, 1]; the same arguments give the same pixels.

    `frames` selects which of the clip's `num_frames` are drawn.
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
    coverage = _coverage(caption.shape, centres[frames], radii[frames], height, width)[..., None]
    background, colour = (
        np.array(BACKGROUNDS[caption.background]),
        np.array(COLOURS[caption.colour]),
    )
    return ((background * (1 - coverage) + colour * coverage) / 255).astype(np.float32)


def _coverage(
    shape: str, centres: NDArray[np.float64], radii: NDArray[np.float64], height: int, width: int
) -> NDArray[np.float64]:
    """Share of each pixel inside the shape. centres [F, 2] as x, y and radii [F] in pixels -> [F, H, W]."""
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


@dataclass(frozen=True)
class Observation:
    """What the checker saw: the five slots (None where unclear) and what captions leave open, in shares of the side."""

    size: str | None = None
    colour: str | None = None
    shape: str | None = None
    motion: str | None = None
    background: str | None = None
    start: tuple[float, float] | None = None
    path_length: float | None = None
    radius: float | None = None

    def matches(self, caption: Caption) -> dict[str, bool]:
        """Slot -> whether the video shows what the caption states."""
        return {slot: getattr(self, slot) == getattr(caption, slot) for slot in SLOTS}


MIN_CONTRAST = 45  # a shape stands out from the background by at least this many grey levels
MAX_COLOUR_ERROR = 60  # farther from every palette colour than this is no palette colour
MIN_OVERLAP = 0.75  # intersection over union with the ideal shape
MIN_AREA = (
    0.05**2 * 2
)  # of the side squared: the smallest triangle the grammar can ask for, with slack
SIZE_BOUNDARY = float(np.sqrt(SIZES["small"] * SIZES["large"]))
MIN_GROWTH = 1.35  # last radius over first; rendered clips have 2.08
MIN_TRAVEL = 0.12  # share of the side; rendered clips travel at least 0.28
AREA_FACTORS = {"circle": np.pi, "square": 4.0, "triangle": 2.0}  # area / radius^2
CENTROID_DROPS = {
    "circle": 0.0,
    "square": 0.0,
    "triangle": 1 / 3,
}  # centroid below the box centre, in radii


def observe(video: NDArray[np.floating]) -> Observation:
    """Reads the slots out of decoded frames. video [F, H, W, 3] in [0, 1]."""
    pixels = np.asarray(video, dtype=np.float64) * 255
    height, width = pixels.shape[1:3]
    side = min(height, width)
    background_rgb = np.median(pixels.reshape(-1, 3), axis=0)  # no shape covers half the frame
    background = _nearest(background_rgb, BACKGROUNDS)
    contrast = np.linalg.norm(pixels - background_rgb, axis=-1)
    peak = np.quantile(contrast, 1 - MIN_AREA / 2 * side**2 / (height * width))
    if peak < MIN_CONTRAST:
        return Observation(background=background)
    colour_rgb = np.median(pixels[contrast > 0.7 * peak], axis=0)
    colour = _nearest(colour_rgb, COLOURS)

    axis = colour_rgb - background_rgb
    coverage = np.clip((pixels - background_rgb) @ axis / (axis @ axis), 0, 1)
    coverage[coverage < 0.15] = 0  # coding noise far away from the shape must not move its centroid
    areas = coverage.sum((1, 2))
    if areas.min() < MIN_AREA * side**2:
        return Observation(background=background, colour=colour)
    y, x = np.mgrid[0:height, 0:width] + 0.5
    centroids = (
        np.stack([(coverage * x).sum((1, 2)), (coverage * y).sum((1, 2))], axis=1) / areas[:, None]
    )

    shape, overlap = _best_shape(coverage, areas, centroids)
    radii = np.sqrt(areas / AREA_FACTORS[shape]) / side
    path = (centroids[-1] - centroids[0]) / side
    return Observation(
        size="small" if radii.mean() < SIZE_BOUNDARY else "large",
        colour=colour,
        shape=shape if overlap >= MIN_OVERLAP else None,
        motion=_motion(path, radii),
        background=background,
        start=(float(centroids[0, 0] / width), float(centroids[0, 1] / height)),
        path_length=float(np.hypot(*path)),
        radius=float(radii.mean()),
    )


def _nearest(rgb: NDArray[np.float64], palette: dict[str, tuple[int, int, int]]) -> str | None:
    errors = {name: float(np.linalg.norm(rgb - np.array(value))) for name, value in palette.items()}
    best = min(errors, key=errors.__getitem__)
    return best if errors[best] <= MAX_COLOUR_ERROR else None


def _best_shape(
    coverage: NDArray[np.float64], areas: NDArray[np.float64], centroids: NDArray[np.float64]
) -> tuple[str, float]:
    """The shape that, drawn with the same area and centroid, overlaps best: name and mean IoU over the frames."""
    overlaps = {}
    for shape in SHAPES:
        radii = np.sqrt(areas / AREA_FACTORS[shape])
        centres = centroids - np.stack(
            [np.zeros_like(radii), CENTROID_DROPS[shape] * radii], axis=1
        )
        ideal = _coverage(shape, centres, radii, *coverage.shape[1:])
        union = np.maximum(coverage, ideal).sum((1, 2))
        overlaps[shape] = float((np.minimum(coverage, ideal).sum((1, 2)) / union).mean())
    best = max(overlaps, key=overlaps.__getitem__)
    return best, overlaps[best]


def _motion(path: NDArray[np.float64], radii: NDArray[np.float64]) -> str | None:
    """Names the motion. path [2] from first to last frame and radii [F], in shares of the side."""
    growth = radii[-1] / radii[0]
    travel = np.abs(path)
    if max(growth, 1 / growth) >= MIN_GROWTH and travel.max() < MIN_TRAVEL:
        return "growing" if growth > 1 else "shrinking"
    if max(growth, 1 / growth) < MIN_GROWTH and travel.max() >= max(MIN_TRAVEL, 2 * travel.min()):
        main = int(travel.argmax())
        step = [0, 0]
        step[main] = int(np.sign(path[main]))
        return next(name for name, direction in DIRECTIONS.items() if direction == tuple(step))
    return None


def _main() -> int:
    """The command line; returns the exit code: 0 all slots hold, 1 one fails, 2 bad input."""
    import argparse
    import json
    import sys

    from pipelines.video import read_video, write_video

    parser = argparse.ArgumentParser(
        prog="python -m trainers.worlds.shapes", description=__doc__.splitlines()[0]
    )
    commands = parser.add_subparsers(dest="command", required=True)
    draw = commands.add_parser("render", help="draw one clip of a caption")
    draw.add_argument("--out", type=Path, required=True)
    draw.add_argument("--seed", type=int, default=0)
    judge = commands.add_parser("check", help="read the slots out of a clip")
    judge.add_argument("video", type=Path)
    for command in (draw, judge):
        command.add_argument("--caption", required=True)
    options = parser.parse_args()
    try:
        caption = Caption.parse(options.caption)
        if options.command == "render":
            write_video(options.out, render(caption, options.seed), fps=8)
            return 0
        observation = observe(read_video(options.video))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    matches = observation.matches(caption)
    slots = {slot: {"seen": getattr(observation, slot), "matches": matches[slot]} for slot in SLOTS}
    unstated = {name: getattr(observation, name) for name in ("start", "path_length", "radius")}
    print(json.dumps({**slots, "unstated": unstated}, indent=2))
    return 0 if all(matches.values()) else 1


if __name__ == "__main__":
    raise SystemExit(_main())
