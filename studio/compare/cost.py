"""What clips cost, measured and expected."""

from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.recipe import Recipe
from studio.clips.store import ClipInfo


def estimate_sec(recipe: Recipe, history: Sequence[tuple[Recipe, ClipInfo]]) -> float | None:
    """Seconds by the forwards of the newest clip of the same model and size; None without one."""
    for earlier, info in history:
        same = all(
            getattr(earlier, name) == getattr(recipe, name)
            for name in ("model", "width", "height", "num_frames", "memory")
        )
        if same and info.denoise_sec is not None and info.decode_sec is not None:
            per_forward = info.denoise_sec / info.num_forwards
            return per_forward * recipe.num_forwards + info.decode_sec
    return None


def metric_lines(info: ClipInfo, first: ClipInfo | None) -> list[list[str]]:
    """Name and value of each figure under a clip; `first` is A, or None where this is A."""
    lines = []
    for name, seconds in (
        ("denoise", info.denoise_sec),
        ("decode", info.decode_sec),
        ("total", warm_sec(info)),
    ):
        if seconds is not None:
            lines.append([name, f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s"])
    lines.append(["forwards", str(info.num_forwards)])
    if first is not None and first.denoise_sec and info.denoise_sec:
        lines.append(["denoise vs A", f"{first.denoise_sec / info.denoise_sec:.1f}x"])
        lines.append(["total vs A", f"{(warm_sec(first) or 0) / (warm_sec(info) or 1):.1f}x"])
    return lines


def warm_sec(info: ClipInfo) -> float | None:
    """Seconds without loading the model, which only the first clip of a model pays."""
    if info.total_sec is None or info.load_sec is None:
        return None
    return info.total_sec - info.load_sec


@dataclass(frozen=True)
class Forecast:
    """What Generate would do: problems by label, seconds of each clip to make, how many exist."""

    problems: dict[str, str]
    seconds: list[float | None]
    num_cached: int
