"""The exact checker of the shapes world: reads the caption's slots out of decoded frames.

It segments every frame between the background and the shape's colour, draws each candidate shape
with the same area and centroid, and takes the one that overlaps best. Rendered clips score 100 %,
after H.264 too.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainers.worlds.shapes import (
    BACKGROUNDS,
    COLOURS,
    DIRECTIONS,
    SHAPES,
    SIZES,
    SLOTS,
    Caption,
    coverage,
)


@dataclass(frozen=True)
class Observation:
    """What the checker saw.

    The five slots (None where unclear) and what captions leave open, in shares of the side.
    """

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
    inside = np.clip((pixels - background_rgb) @ axis / (axis @ axis), 0, 1)
    inside[inside < 0.15] = 0  # coding noise far away from the shape must not move its centroid
    areas = inside.sum((1, 2))
    if areas.min() < MIN_AREA * side**2:
        return Observation(background=background, colour=colour)
    y, x = np.mgrid[0:height, 0:width] + 0.5
    centroids = (
        np.stack([(inside * x).sum((1, 2)), (inside * y).sum((1, 2))], axis=1) / areas[:, None]
    )

    shape, overlap = _best_shape(inside, areas, centroids)
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
    inside: NDArray[np.float64], areas: NDArray[np.float64], centroids: NDArray[np.float64]
) -> tuple[str, float]:
    """The shape that, drawn with the same area and centroid, overlaps best.

    Name and mean IoU over the frames.
    """
    overlaps = {}
    for shape in SHAPES:
        radii = np.sqrt(areas / AREA_FACTORS[shape])
        centres = centroids - np.stack(
            [np.zeros_like(radii), CENTROID_DROPS[shape] * radii], axis=1
        )
        ideal = coverage(shape, centres, radii, *inside.shape[1:])
        union = np.maximum(inside, ideal).sum((1, 2))
        overlaps[shape] = float((np.minimum(inside, ideal).sum((1, 2)) / union).mean())
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
