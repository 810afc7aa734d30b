"""A first look at a video: its header and first frame, and what speaks against preparing it."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import av
from pydantic import ValidationError

from pipelines.catalog.registry import Registry
from pipelines.strict import explain
from trainers.settings.prepare import ClipShape, Kind, PrepareConfig
from trainers.sources.listing import Item, kind_of, read_items

SLOWER = 0.98  # of the asked frame rate; 23.976 serves for 24


@dataclass(frozen=True)
class Probe:
    """What a video says of itself; 0 where it cannot be read. `problem`: a few words, or nothing.

    width and height in pixels as it is shown, upright; `size` is the one its clips get.
    """

    width: int = 0
    height: int = 0
    fps: float = 0.0
    duration_sec: float = 0.0
    codec: str = ""
    size: tuple[int, int] | None = None
    problem: str = ""

    @property
    def kept(self) -> float:
        """The share of the picture that the crop to `size` keeps."""
        if self.size is None:
            return 0.0
        ratio = (self.width / self.height) / (self.size[0] / self.size[1])
        return min(ratio, 1 / ratio)


def probe(video: Item, wanted: ClipShape) -> Probe:
    """Looks at one video. Never raises for what the file holds."""
    assert video.file is not None
    if not video.file.is_file():
        return Probe(problem="the file does not exist")
    try:
        with av.open(str(video.file)) as container:
            seen = _read(container)
    except (av.error.FFmpegError, StopIteration) as error:
        return Probe(problem=f"it cannot be read ({getattr(error, 'strerror', 'no frame')})")
    if seen is None:
        return Probe(problem="it has no video stream")
    size = nearest_size(seen.width, seen.height, wanted.sizes)
    problem = "it has no caption" if not video.caption else _problem(seen, size, wanted)
    return Probe(**{**vars(seen), "size": size, "problem": problem})


def _read(container: "av.container.InputContainer") -> Probe | None:
    if not container.streams.video:
        return None
    stream = container.streams.video[0]
    frame = next(container.decode(stream))
    width, height = shown_size(frame, stream)
    duration = stream.duration * stream.time_base if stream.duration else 0
    if not duration and container.duration:
        duration = container.duration / av.time_base
    return Probe(
        width=width,
        height=height,
        fps=float(stream.average_rate or stream.guessed_rate or 0),
        duration_sec=float(duration),
        codec=stream.codec_context.name,
    )


def shown_size(frame: "av.VideoFrame", stream: "av.VideoStream") -> tuple[int, int]:
    """Width and height as a player shows them: with square pixels, upright."""
    width = round(frame.width * (stream.sample_aspect_ratio or 1))
    return (frame.height, width) if frame.rotation % 180 else (width, frame.height)


def nearest_size(
    width: int, height: int, sizes: Sequence[tuple[int, int]]
) -> tuple[int, int] | None:
    """Of the sizes that need no enlarging, the one nearest in shape; then the largest."""
    fitting = [size for size in sizes if size[0] <= width and size[1] <= height]
    shape = math.log(width / height)
    return min(
        fitting,
        key=lambda size: (abs(math.log(size[0] / size[1]) - shape), -size[0] * size[1]),
        default=None,
    )


def _problem(seen: Probe, size: tuple[int, int] | None, wanted: ClipShape) -> str:
    if size is None:
        sizes = " and ".join(f"{width}x{height}" for width, height in wanted.sizes)
        return f"{seen.width}x{seen.height} is smaller than {sizes}"
    if seen.fps < SLOWER * wanted.fps:
        return f"{seen.fps:.4g} frames a second are fewer than {wanted.fps}"
    needed_sec = (wanted.num_frames - 1) / wanted.fps
    if seen.duration_sec and seen.duration_sec < needed_sec:
        return f"{seen.duration_sec:.3g} s are too short for {wanted.num_frames} frames"
    return ""


@dataclass(frozen=True)
class Look:
    """What a source holds. `probes` are of the first videos, as many as there was time for."""

    config: dict[str, Any]  # complete
    kind: Kind
    items: tuple[Item, ...]
    probes: tuple[Probe, ...]


def read_config(tree: Mapping[str, Any], registry: Registry) -> tuple[PrepareConfig, list[Item]]:
    """The complete settings, and the items of their source. ValueError in one sentence."""
    try:
        config = PrepareConfig.model_validate(tree)
        items = read_items(config.source)
        preset = registry.entry(config.model).preset
        config = config.complete(kind_of(items), preset)
        return config.model_copy(update={"num_steps": len(items)}), items
    except ValidationError as error:
        raise ValueError(explain(error)) from error


def look(tree: Mapping[str, Any], registry: Registry, within_sec: float) -> Look:
    """Validates the settings and looks at the videos, one after the other, until time is up."""
    config, items = read_config(tree, registry)
    kind = kind_of(items)
    probes = _probes(items, config, within_sec) if kind == "videos" else ()
    return Look(config.model_dump(mode="json"), kind, tuple(items), probes)


def _probes(items: Sequence[Item], config: PrepareConfig, within_sec: float) -> tuple[Probe, ...]:
    end, found = time.monotonic() + within_sec, []
    for item in items:
        if time.monotonic() > end:
            break
        found.append(probe(item, config.clips))
    return tuple(found)
