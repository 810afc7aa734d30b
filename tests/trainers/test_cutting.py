"""Clips out of videos: which frames, which part of the picture, and never across a cut."""

from pathlib import Path

import av
import numpy as np
import pytest

from pipelines.video import write_video
from tests.trainers.videos import turned, write_grey
from trainers.prepare.cut import Cut, cut_clips
from trainers.settings.prepare import ClipShape


def cut(
    file: Path, num_frames: int, fps: int, max_clips: int = 9, size: tuple[int, int] = (32, 16)
) -> list[Cut]:
    return list(cut_clips(file, size, ClipShape((size,), num_frames, fps, max_clips)))


def levels(clip: Cut) -> list[int]:
    """The grey of each frame."""
    return [round(float(frame.mean())) for frame in clip.frames]


def test_frames_come_at_the_asked_rate(tmp_path: Path) -> None:
    video = write_grey(tmp_path / "a.mp4", range(40, 72), 30, (48, 32))
    (clip,) = cut(video, 9, 10)[:1]
    assert clip.frames.shape == (9, 16, 32, 3)
    assert levels(clip) == pytest.approx(range(40, 67, 3), abs=1)
    (clip,) = cut(video, 13, 16, max_clips=1)  # the first frame from each sixteenth on
    assert levels(clip) == pytest.approx([40 + -(-30 * j // 16) for j in range(13)], abs=1)


def test_clips_follow_each_other_up_to_the_asked_number(tmp_path: Path) -> None:
    video = write_grey(tmp_path / "a.mp4", range(40, 60), 8, (32, 16))
    clips = cut(video, 5, 8)
    assert [levels(clip)[0] for clip in clips] == pytest.approx([40, 45, 50, 55], abs=1)
    assert [clip.start_sec for clip in clips] == [0, 0.625, 1.25, 1.875]
    assert len(cut(video, 5, 8, max_clips=2)) == 2


def test_no_clip_goes_across_a_scene_cut(tmp_path: Path) -> None:
    scenes = [20] * 7 + [220] * 8 + [90] * 3
    video = write_grey(tmp_path / "a.mp4", scenes, 8, (32, 16))
    clips = cut(video, 5, 8)
    assert [set(levels(clip)) for clip in clips] == [{20}, {220}]
    assert clips[1].start_sec == pytest.approx(7 / 8)
    assert cut(video, 9, 8) == []


def test_the_middle_of_the_picture_is_kept_and_nothing_is_stretched(tmp_path: Path) -> None:
    frames = np.zeros((5, 64, 192, 3), np.uint8)
    frames[:, :, 64:128] = 200  # a square in the middle
    write_video(tmp_path / "a.mp4", frames, 8)
    (clip,) = cut(tmp_path / "a.mp4", 5, 8, size=(32, 32))
    assert clip.frames[:, 2:-2, 2:-2].mean() == pytest.approx(200, abs=2)
    (clip,) = cut(tmp_path / "a.mp4", 5, 8, size=(64, 32))
    bright = clip.frames[0, 16, :, 0] > 100
    assert bright.sum() == pytest.approx(32, abs=1)


def test_a_video_that_lies_on_its_side_is_turned(tmp_path: Path) -> None:
    frames = np.zeros((5, 32, 64, 3), np.uint8)
    frames[:, :, :32] = 200  # left in the file, and so above once it is turned clockwise
    write_video(tmp_path / "a.mp4", frames, 8)
    (clip,) = cut(turned(tmp_path / "a.mp4"), 5, 8, size=(32, 64))
    assert clip.frames[0, :28].mean() > 180
    assert clip.frames[0, 36:].mean() < 20


def test_clips_before_the_damage_come_and_none_holds_a_damaged_frame(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (60, 32, 48, 3)).astype(np.uint8)
    write_video(tmp_path / "a.mp4", noise, 8)
    whole = cut(tmp_path / "a.mp4", 5, 8)
    data = bytearray((tmp_path / "a.mp4").read_bytes())
    middle = len(data) // 2
    data[middle : middle + 5000] = bytes(5000)
    (tmp_path / "a.mp4").write_bytes(data)
    shape = ClipShape(((32, 16),), 5, 8, 99)
    clips: list[Cut] = []
    with pytest.raises(av.error.FFmpegError):
        clips.extend(cut_clips(tmp_path / "a.mp4", (32, 16), shape))
    assert 0 < len(clips) < len(whole)
    pairs = zip(clips, whole, strict=False)
    assert all(np.array_equal(ours.frames, theirs.frames) for ours, theirs in pairs)
