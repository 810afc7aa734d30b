"""A first look at a video: its header and first frame, and what speaks against preparing it.

Imports no torch, so that the studio can look before anything starts.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import av

from trainers.settings.prepare import ClipShape
from trainers.sources.listing import Item

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
