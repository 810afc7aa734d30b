"""The shapes world: grammar, renderer and checker."""

import json
import subprocess
import sys

import numpy as np
import pytest

from pipelines.video import read_video, write_video
from trainers.worlds.checker import Observation, observe
from trainers.worlds.shapes import HELD_OUT, SLOTS, Caption, all_captions, render, training_captions

RED = Caption.parse("a small red circle moving left on a black background")


def test_the_grammar_has_864_captions_and_reads_its_own_text_back() -> None:
    captions = all_captions()
    assert len(set(captions)) == 864
    assert all(Caption.parse(str(caption)) == caption for caption in captions)


def test_a_tenth_of_the_triples_is_held_out_of_training_and_every_value_stays_seen() -> None:
    triples = {(c.colour, c.shape, c.motion) for c in all_captions()}
    assert len(HELD_OUT) == round(len(triples) / 10)
    assert triples >= HELD_OUT
    seen = training_captions()
    assert not any(caption.held_out for caption in seen)
    for slot in SLOTS:
        assert {getattr(c, slot) for c in seen} == {getattr(c, slot) for c in all_captions()}


def test_text_outside_the_grammar_is_refused_with_an_example() -> None:
    with pytest.raises(ValueError, match="not in the shapes grammar; write for example"):
        Caption.parse("a small pink circle moving left on a black background")


def test_the_checker_passes_500_rendered_captions_and_fails_shuffled_ones() -> None:
    rng = np.random.default_rng(0)
    captions = [all_captions()[i] for i in rng.permutation(864)[:500]]
    seen = [observe(render(caption, seed)) for seed, caption in enumerate(captions)]
    assert all(all(o.matches(c).values()) for o, c in zip(seen, captions, strict=True))
    shuffled = [captions[i] for i in rng.permutation(500)]
    passed = [all(o.matches(c).values()) for o, c in zip(seen, shuffled, strict=True)]
    assert np.mean(passed) < 0.02  # chance is 1 in 864, and a few captions stay in place
    slots = [v for o, c in zip(seen, shuffled, strict=True) for v in o.matches(c).values()]
    assert np.mean(slots) == pytest.approx((1 / 2 + 1 / 6 + 1 / 3 + 1 / 6 + 1 / 4) / 5, abs=0.05)


def test_the_checker_passes_truth_after_h264(tmp_path) -> None:
    for seed, caption in enumerate(all_captions()[::18]):
        write_video(tmp_path / "clip.mp4", render(caption, seed), fps=8)
        found = observe(read_video(tmp_path / "clip.mp4")).matches(caption)
        assert all(found.values()), (str(caption), found)


@pytest.mark.parametrize(
    ("num_frames", "height", "width"), [(9, 96, 128), (33, 128, 128), (5, 64, 96)]
)
def test_other_sizes_and_lengths_render_and_check(num_frames: int, height: int, width: int) -> None:
    for seed, caption in enumerate(all_captions()[::40]):
        clip = render(caption, seed, num_frames, height, width)
        assert clip.shape == (num_frames, height, width, 3)
        assert all(observe(clip).matches(caption).values()), str(caption)


def test_the_whole_shape_stays_inside_the_frame() -> None:
    for seed, caption in enumerate(all_captions()[::7]):
        clip = render(caption, seed)
        edge = np.concatenate([clip[:, 0], clip[:, -1], clip[:, :, 0], clip[:, :, -1]], axis=1)
        assert np.ptp(edge, axis=(0, 1)).max() == 0, str(caption)


def test_growing_sweeps_the_radius_from_65_to_135_percent() -> None:
    clip = render(Caption.parse("a large red square growing on a black background"), 3)
    widths = [(frame[..., 0] > 0.5).any(0).sum() for frame in clip]
    assert widths[-1] / widths[0] == pytest.approx(1.35 / 0.65, rel=0.06)


def test_the_same_seed_draws_the_same_pixels_and_another_seed_another_path() -> None:
    assert np.array_equal(render(RED, 5), render(RED, 5))
    assert not np.array_equal(render(RED, 5), render(RED, 6))
    assert np.array_equal(render(RED, 5, frames=slice(4, 6)), render(RED, 5)[4:6])


def test_the_checker_reports_what_captions_leave_open() -> None:
    found = [observe(render(RED, seed)) for seed in range(20)]
    assert np.ptp([o.start for o in found], axis=0).min() > 0.2
    assert all(0.27 < (o.path_length or 0) < 0.43 for o in found)
    assert all(0.098 < (o.radius or 0) < 0.122 for o in found)


def test_an_empty_or_noisy_video_has_no_shape() -> None:
    grey = np.full((17, 64, 64, 3), 89 / 255)
    assert observe(grey) == Observation(background="grey")
    noise = np.random.default_rng(0).random((17, 64, 64, 3))
    assert observe(noise).shape is None


def test_a_vanishing_shape_fails() -> None:
    clip = render(RED, 0)
    clip[8:] = clip[0, 0, 0]
    assert observe(clip).shape is None


def test_the_command_line_renders_checks_and_fails_a_wrong_caption(tmp_path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "trainers.worlds.shapes", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    clip = str(tmp_path / "x.mp4")
    assert run("render", "--caption", str(RED), "--seed", "1", "--out", clip).returncode == 0
    right = run("check", clip, "--caption", str(RED))
    assert right.returncode == 0
    report = json.loads(right.stdout)
    assert {slot: report[slot]["seen"] for slot in SLOTS} == {s: getattr(RED, s) for s in SLOTS}
    wrong = run("check", clip, "--caption", str(RED).replace("left", "right"))
    assert wrong.returncode == 1
    assert json.loads(wrong.stdout)["motion"] == {"seen": "moving left", "matches": False}
    bad = run("check", clip, "--caption", "a cat")
    assert bad.returncode == 2
    assert bad.stderr.startswith("error: caption 'a cat'")
    assert "Traceback" not in bad.stderr
