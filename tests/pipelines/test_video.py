from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pipelines.recipe import Recipe
from pipelines.video import (
    read_comment,
    read_recipe,
    read_video,
    write_grid,
    write_poster,
    write_video,
)
from trainers.worlds.checker import observe
from trainers.worlds.shapes import all_captions, render

CELL = 320  # what write_grid enlarges a small clip to
LABEL = 48


def flat(colour: tuple[float, float, float], num_frames: int = 3) -> NDArray[np.float32]:
    frames = np.empty((num_frames, 32, 32, 3), dtype=np.float32)
    frames[:] = colour
    return frames


def test_the_checker_scores_clips_that_were_written_and_read_at_100_percent(tmp_path: Path) -> None:
    captions = all_captions()[:: 864 // 40][:40]
    assert len(captions) == 40
    failed = []
    for seed, caption in enumerate(captions):
        write_video(tmp_path / "clip.mp4", render(caption, seed), fps=8)
        matches = observe(read_video(tmp_path / "clip.mp4")).matches(caption)
        if not all(matches.values()):
            failed.append((str(caption), matches))
    assert not failed


@pytest.mark.parametrize(
    "colour", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1), (0, 0, 0), (0.3, 0.5, 0.7)]
)
def test_colours_come_back_as_they_went_in(
    colour: tuple[float, float, float], tmp_path: Path
) -> None:
    write_video(tmp_path / "clip.mp4", flat(colour), fps=8)
    np.testing.assert_allclose(read_video(tmp_path / "clip.mp4"), flat(colour), atol=0.01)


def test_the_file_says_bt709_and_is_ready_for_browsers(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    write_video(path, flat((1, 0, 0), num_frames=5), fps=16)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frame = next(container.decode(video=0))
        assert (stream.codec.name, stream.pix_fmt) == ("h264", "yuv420p")
        assert (frame.colorspace, frame.color_primaries, frame.color_trc, frame.color_range) == (
            1,
            1,
            1,
            1,
        )
        assert (stream.average_rate, stream.frames) == (16, 5)
        assert float(stream.duration * stream.time_base) == pytest.approx(5 / 16)
    content = path.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")  # faststart


def test_uint8_and_float_frames_give_the_same_file(tmp_path: Path) -> None:
    frames = render(all_captions()[0], seed=0, num_frames=5)
    write_video(tmp_path / "float.mp4", frames, fps=8)
    write_video(tmp_path / "uint8.mp4", np.rint(frames * 255).astype(np.uint8), fps=8)
    assert (tmp_path / "float.mp4").read_bytes() == (tmp_path / "uint8.mp4").read_bytes()


def test_the_comment_keeps_a_recipe_with_any_letters(tmp_path: Path) -> None:
    recipe = Recipe(model="tiny", prompt='ein "Würfel" 色调 🎈 ' + "x" * 3000)
    write_video(tmp_path / "clip.mp4", flat((0, 0, 0)), fps=8, comment=recipe.to_json())
    assert read_comment(tmp_path / "clip.mp4") == recipe.to_json()
    assert read_recipe(tmp_path / "clip.mp4") == recipe


@pytest.mark.parametrize(
    ("comment", "message"),
    [
        (None, "carries no recipe"),
        ("made elsewhere", "carries no readable recipe"),
        ('{"model": "m", "prompt": "p", "colour": 1}', "colour: is not a known setting"),
    ],
)
def test_a_clip_without_a_recipe_says_so(comment: str | None, message: str, tmp_path: Path) -> None:
    write_video(tmp_path / "clip.mp4", flat((0, 0, 0)), fps=8, comment=comment)
    with pytest.raises(ValueError, match=message):
        read_recipe(tmp_path / "clip.mp4")


def test_a_file_that_is_no_video_is_named(tmp_path: Path) -> None:
    (tmp_path / "notes.mp4").write_text("not a video")
    with pytest.raises(ValueError, match=r"notes\.mp4 cannot be read"):
        read_video(tmp_path / "notes.mp4")
    with pytest.raises(ValueError, match=r"absent\.mp4 does not exist"):
        read_video(tmp_path / "absent.mp4")


def test_a_write_that_fails_leaves_the_older_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    write_video(path, flat((1, 1, 1)), fps=8)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"31x32 but H.264 needs an even"):
        write_video(path, np.zeros((3, 32, 31, 3), dtype=np.uint8), fps=8)
    with pytest.raises(ValueError, match="4"):  # fails when the file is open already
        write_video(path, np.zeros((3, 32, 32, 4), dtype=np.uint8), fps=8)
    assert [file.name for file in tmp_path.iterdir()] == ["clip.mp4"]
    assert path.read_bytes() == before


def test_a_poster_is_the_frame(tmp_path: Path) -> None:
    frame = render(all_captions()[5], seed=0)[0]
    write_poster(tmp_path / "poster.png", frame)
    shown = np.asarray(Image.open(tmp_path / "poster.png")) / 255
    np.testing.assert_allclose(shown, frame, atol=1 / 255)


def test_a_grid_puts_clips_side_by_side_and_holds_the_last_frame_of_the_shorter(
    tmp_path: Path,
) -> None:
    clips = [tmp_path / "long.mp4", tmp_path / "short.mp4"]
    long, short = (
        np.tile(np.linspace(0, 1, 8)[:, None, None, None], (1, 32, 32, 3)),
        flat((1, 0, 0)),
    )
    short[-1] = (0, 0, 1)
    write_video(clips[0], long, fps=8)
    write_video(clips[1], short, fps=8)
    write_grid(clips, ["the long one", "the short one"], tmp_path / "grid.mp4")
    grid = read_video(tmp_path / "grid.mp4")
    assert grid.shape == (8, LABEL + CELL, 2 * CELL, 3)
    middle = grid[:, LABEL + CELL // 2, [CELL // 2, CELL + CELL // 2]]
    np.testing.assert_allclose(middle[:, 0, 0], np.linspace(0, 1, 8), atol=0.02)
    np.testing.assert_allclose(middle[:2, 1], [(1, 0, 0)] * 2, atol=0.02)
    np.testing.assert_allclose(middle[2:, 1], [(0, 0, 1)] * 6, atol=0.02)
    left, right = grid[0, :LABEL, :CELL], grid[0, :LABEL, CELL:]
    assert left.max() > 0.8  # there is a label, and each clip has its own
    assert np.abs(left - right).max() > 0.5


def test_four_clips_make_two_rows_and_five_leave_a_black_cell(tmp_path: Path) -> None:
    clips = []
    for index in range(5):
        clips.append(tmp_path / f"{index}.mp4")
        write_video(clips[-1], flat((1, 1, 1)), fps=8)
    write_grid(clips[:4], list("ABCD"), tmp_path / "four.mp4")
    assert read_video(tmp_path / "four.mp4").shape[1:3] == (2 * (LABEL + CELL), 2 * CELL)
    write_grid(clips, list("ABCDE"), tmp_path / "five.mp4")
    grid = read_video(tmp_path / "five.mp4")
    assert grid.shape[1:3] == (2 * (LABEL + CELL), 3 * CELL)
    assert grid[0, -CELL:, -CELL + 8 :].max() < 0.1


def test_a_gif_has_the_same_pictures_and_duration(tmp_path: Path) -> None:
    write_video(tmp_path / "clip.mp4", render(all_captions()[0], seed=0), fps=8)
    write_grid([tmp_path / "clip.mp4"] * 2, ["A", "B"], tmp_path / "grid.gif")
    with Image.open(tmp_path / "grid.gif") as gif:
        assert gif.size == (2 * CELL, LABEL + CELL)
        duration = 0
        for index in range(gif.n_frames):
            gif.seek(index)
            duration += gif.info["duration"]
    assert duration / 1000 == pytest.approx(17 / 8, rel=0.05)


def test_an_export_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must end in \.mp4 or \.gif"):
        write_grid([], [], tmp_path / "grid.webm")
    with pytest.raises(ValueError, match=r"try clip\.mp4"):
        write_video(tmp_path / "clip.avi", flat((0, 0, 0)), fps=8)
