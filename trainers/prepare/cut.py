"""Clips out of a video: resampled in time, resized and cropped, and never across a scene cut.

The video is decoded once, in order, and no more of it is kept than one clip. A cut is where
FFmpeg's `scdet` filter sees one, by its own default threshold; a slow fade is not found.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import ColorRange
from numpy.typing import NDArray

from pipelines.video import SWSCALE
from trainers.settings.prepare import ClipShape
from trainers.sources.inspect import shown_size

CUT_SCORE = 10.0  # of 100; the documentation of scdet has 8 to 14 as sensible
CUT_WIDTH, CUT_HEIGHT = 160, 90  # pixels, enough to tell scenes apart
EARLY = Fraction(1, 1000)  # of a second: time stamps are rounded


@dataclass(frozen=True)
class Cut:
    """frames uint8 [F, H, W, 3] from this second of the video on."""

    start_sec: float
    frames: NDArray[np.uint8]


def cut_clips(file: Path, size: tuple[int, int], wanted: ClipShape) -> Iterator[Cut]:
    """The first clips of a video, one after the other. `size` is (width, height).

    A clip has, for each of its moments, the first frame from then on, and no damaged one. av's
    FFmpegError where the rest of the video cannot be decoded.
    """
    num_clips, start = 0, Fraction(0)
    window: list[NDArray[np.uint8]] = []
    with av.open(str(file)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        cuts = SceneCuts(stream)
        for index, frame in enumerate(container.decode(stream)):
            if frame.is_corrupt:  # the decoder guessed it
                window = []
                continue
            now = _moment(frame, index, stream)
            if cuts.begin_scene(frame) or not window:
                start, window = now, []
            while now >= start + Fraction(len(window), wanted.fps) - EARLY:
                window.append(fitted(frame, stream, size))
                if len(window) == wanted.num_frames:
                    yield Cut(float(start), np.stack(window))
                    num_clips, window = num_clips + 1, []
                    break
            if num_clips == wanted.clips_per_video:
                return


class SceneCuts:
    """Says of each frame, in order, whether a new scene begins with it."""

    def __init__(self, stream: "av.VideoStream"):
        self.graph = av.filter.Graph()
        nodes = (
            self.graph.add_buffer(template=stream),
            self.graph.add("scale", f"{CUT_WIDTH}:{CUT_HEIGHT}"),
            self.graph.add("scdet"),
            self.graph.add("buffersink"),
        )
        self.graph.link_nodes(*nodes)
        self.graph.configure()

    def begin_scene(self, frame: "av.VideoFrame") -> bool:
        """Whether the frame differs from the one before by more than motion does."""
        self.graph.push(frame)
        return float(self.graph.pull().metadata["lavfi.scd.score"]) >= CUT_SCORE


def fitted(
    frame: "av.VideoFrame", stream: "av.VideoStream", size: tuple[int, int]
) -> NDArray[np.uint8]:
    """The frame upright, as small as it still covers (width, height), and its middle. [H, W, 3]."""
    shown = shown_size(frame, stream)
    scale = max(size[0] / shown[0], size[1] / shown[1])
    width, height = (max(round(side * scale), own) for side, own in zip(shown, size, strict=True))
    turned = frame.rotation % 180 != 0
    picture = frame.reformat(
        width=height if turned else width,
        height=width if turned else height,
        format="rgb24",
        dst_color_range=ColorRange.JPEG,
        interpolation=SWSCALE,
    ).to_ndarray()
    upright = np.rot90(picture, frame.rotation // 90)
    top, left = (height - size[1]) // 2, (width - size[0]) // 2
    return np.ascontiguousarray(upright[top : top + size[1], left : left + size[0]])


def _moment(frame: "av.VideoFrame", index: int, stream: "av.VideoStream") -> Fraction:
    """Seconds from the start of the video; by its number where the frame has no time stamp."""
    if frame.pts is None:
        return Fraction(index) / stream.average_rate
    return Fraction(frame.pts * frame.time_base)
