"""Tiny videos for tests."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipelines.video import write_video
from trainers.worlds.shapes import render, training_captions


def write_grey(path: Path, levels: Sequence[int], fps: int, size: tuple[int, int]) -> Path:
    """A video whose frames are each of one grey, 0 to 255. `size` is (width, height)."""
    frames = np.array(levels, np.uint8)[:, None, None, None]
    write_video(path, frames.repeat(size[1], 1).repeat(size[0], 2).repeat(3, 3), fps)
    return path


def write_shapes(folder: Path, num_videos: int, num_frames: int = 5, side: int = 32) -> Path:
    """A folder of rendered clips with captions beside them, 8 frames a second."""
    for number in range(num_videos):
        caption = training_captions()[number * 7]
        video = folder / f"{number:02d}.mp4"
        write_video(video, render(caption, number, num_frames, side, side), fps=8)
        video.with_suffix(".txt").write_text(f"{caption}\n")
    return folder


def turned(path: Path) -> Path:
    """The same video with a note that players are to turn it clockwise, as phones write it."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 44
    upright = [0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000]
    assert data[at : at + 36] == b"".join(n.to_bytes(4, "big") for n in upright)
    matrix = [0, 0x10000, 0, -0x10000, 0, 0, 0, 0, 0x40000000]
    data[at : at + 36] = b"".join((n % 2**32).to_bytes(4, "big") for n in matrix)
    path.write_bytes(data)
    return path


def problems(folder: Path) -> dict[str, str]:
    """File name -> why it was not prepared."""
    lines = (folder / "problems.jsonl").read_text().splitlines()
    return {Path(row["file"]).name: row["problem"] for row in map(json.loads, lines)}
