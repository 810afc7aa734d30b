"""Clips on disk: H.264 that browsers and PyAV decode alike, the recipe in the `comment` tag."""

import textwrap
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import av
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, Interpolation
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from pydantic import ValidationError

from pipelines.files.disk import atomic_path
from pipelines.recipe import Recipe
from pipelines.strict import explain

if TYPE_CHECKING:
    from moviepy import VideoClip

# crf: 0 lossless .. 51 worst; at 10 a second generation is not told apart by eye. mbtree: x264's
# AVX-512 code for it reads uninitialised memory, and then equal frames make unequal files.
ENCODER = {"crf": "10", "mbtree": "0"}
GRID_CELL_WIDTH = (
    320  # narrower clips are enlarged by a whole factor, so that their labels can be read
)
LABEL_SIZE = 16  # pixels
SWSCALE = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT


def write_video(
    path: Path, frames: NDArray[np.generic], fps: int, comment: str | None = None
) -> None:
    """Writes H.264 yuv420p with BT.709 tags and the index in front (faststart); atomic.

    frames [F, H, W, 3], float in [0, 1] or uint8; height and width even.
    """
    if path.suffix != ".mp4":
        raise ValueError(f"out is {path.name!r} but a video must end in .mp4; try {path.stem}.mp4")
    pixels = _to_uint8(frames)
    height, width = pixels.shape[1:3]
    if height % 2 or width % 2:
        raise ValueError(f"frames are {width}x{height} but H.264 needs an even width and height")
    with (
        atomic_path(path) as temporary,
        av.open(str(temporary), "w", options={"movflags": "+faststart"}) as container,
    ):
        if comment is not None:
            container.metadata["comment"] = comment
        stream = container.add_stream("libx264", rate=Fraction(fps), options=ENCODER)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        codec = stream.codec_context
        codec.colorspace, codec.color_range = Colorspace.ITU709, ColorRange.MPEG
        codec.color_primaries, codec.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
        for picture in pixels:
            container.mux(stream.encode(_to_yuv(picture)))
        container.mux(stream.encode())


def _to_uint8(frames: NDArray[np.generic]) -> NDArray[np.uint8]:
    if frames.dtype == np.uint8:
        return frames.astype(np.uint8, copy=False)
    return np.rint(np.clip(frames.astype(np.float32), 0, 1) * 255).astype(np.uint8)


def _to_yuv(picture: NDArray[np.uint8]) -> av.VideoFrame:
    return av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24").reformat(
        format="yuv420p",
        dst_colorspace=Colorspace.ITU709,
        src_color_range=ColorRange.JPEG,
        dst_color_range=ColorRange.MPEG,
        dst_color_primaries=ColorPrimaries.BT709,
        dst_color_trc=ColorTrc.BT709,
        interpolation=SWSCALE,
    )


def read_video(path: Path) -> NDArray[np.float32]:
    """All frames of a clip. [F, H, W, 3] in [0, 1]."""
    with _open(path) as container:
        frames = [
            frame.reformat(
                format="rgb24", dst_color_range=ColorRange.JPEG, interpolation=SWSCALE
            ).to_ndarray()
            for frame in container.decode(video=0)
        ]
    return np.divide(np.stack(frames), 255, dtype=np.float32)


def read_comment(path: Path) -> str | None:
    """The text in the `comment` tag, or None."""
    with _open(path) as container:
        return container.metadata.get("comment")


def read_recipe(path: Path) -> Recipe:
    """The recipe that made a clip. ValueError for a clip that this studio did not write."""
    comment = read_comment(path)
    if comment is None:
        raise ValueError(f"video {path} carries no recipe; only clips made by this studio do")
    try:
        return Recipe.model_validate_json(comment)
    except ValidationError as error:
        raise ValueError(f"video {path} carries no readable recipe ({explain(error)})") from error


def _open(path: Path) -> av.container.InputContainer:
    if not path.is_file():
        raise ValueError(f"video {path} does not exist; check the path")
    try:
        container = av.open(str(path))
    except av.error.FFmpegError as error:
        raise ValueError(f"video {path} cannot be read; it is damaged or not a video") from error
    return container


def write_poster(path: Path, frame: NDArray[np.generic]) -> None:
    """The still shown before a clip plays, .jpg or .png; atomic. frame [H, W, 3] as in a video."""
    with atomic_path(path) as temporary:
        Image.fromarray(_to_uint8(frame)).save(temporary, quality=92)


def write_grid(clips: Sequence[Path], labels: Sequence[str], out: Path) -> None:
    """Clips side by side under labels, .mp4 or .gif; shorter ones hold their end; atomic."""
    from moviepy import ColorClip, clips_array  # slow to import, and only exports need it

    if out.suffix not in (".mp4", ".gif"):
        raise ValueError(f"out is {out.name!r} but an export must end in .mp4 or .gif")
    cells = [_labelled(path, label) for path, label in zip(clips, labels, strict=True)]
    longest_sec = max(cell.duration for cell in cells)
    num_columns = len(cells) if len(cells) <= 3 else (len(cells) + 1) // 2
    cells += [ColorClip(cells[-1].size, (0, 0, 0))] * (-len(cells) % num_columns)
    cells = [cell.with_duration(longest_sec) for cell in cells]
    rows = [cells[start : start + num_columns] for start in range(0, len(cells), num_columns)]
    fps = max(_read_fps(path) for path in clips)
    grid = clips_array(rows, bg_color=(0, 0, 0)).with_fps(fps)
    if out.suffix == ".mp4":
        write_video(out, np.stack(list(grid.iter_frames(dtype="uint8"))), fps)
    else:
        with atomic_path(out) as temporary:
            grid.write_gif(temporary, logger=None)


def _labelled(path: Path, label: str) -> "VideoClip":
    """A clip under its label. Past its end it stays on the last frame."""
    from moviepy import VideoClip

    fps = _read_fps(path)
    frames = _to_uint8(read_video(path))
    factor = -(-GRID_CELL_WIDTH // frames.shape[2])
    frames = frames.repeat(factor, axis=1).repeat(factor, axis=2)
    band = _draw_label(label, frames.shape[2])

    def picture(time_sec: float) -> NDArray[np.uint8]:
        index = int(time_sec * fps + 1e-6)  # a frame starts exactly at index / fps
        return np.concatenate([band, frames[min(index, len(frames) - 1)]])

    return VideoClip(picture, duration=len(frames) / fps)


def _draw_label(text: str, width: int) -> NDArray[np.uint8]:
    """Two lines of text, white on black. [H, width, 3]."""
    font = ImageFont.load_default(LABEL_SIZE)  # comes with Pillow: no system font is needed
    num_letters = int(width / font.getlength("abcdefghij ") * 11)
    lines = textwrap.wrap(text, num_letters, max_lines=2, placeholder=" ...")
    band = Image.new("RGB", (width, 3 * LABEL_SIZE))
    ImageDraw.Draw(band).multiline_text((6, 3), "\n".join(lines), fill="white", font=font)
    return np.asarray(band)


def _read_fps(path: Path) -> int:
    with _open(path) as container:
        return round(container.streams.video[0].average_rate)
