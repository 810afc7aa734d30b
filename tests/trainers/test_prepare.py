"""`python -m trainers prepare`, whole: what it stores, refuses, and goes on with."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from pipelines.models.loading import load_prompt_encoder, load_video_codec
from pipelines.video import read_video, write_video
from tests.trainers.conftest import TEXT_LENGTH
from tests.trainers.videos import problems, write_grey, write_shapes
from trainers.__main__ import main
from trainers.data import prepared
from trainers.data.batches import Prepared
from trainers.data.prepared import INDEX, PreparedFolder
from trainers.settings.data import PreparedData
from trainers.worlds.shapes import training_captions

TINY_WAN = Path("assets/tiny-wan")
KILLED_AFTER_A_SHARD = f"""
import os, signal, sys
from {main.__module__} import main
import {prepared.__name__} as prepared
write_shard = prepared.write_shard
def write_and_die(*arguments):
    write_shard(*arguments)
    os.kill(os.getpid(), signal.SIGKILL)
prepared.write_shard = write_and_die
main(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("videos"), num_videos=5)


def prepare(source: Path, out: Path, model: Path, *options: str) -> int:
    return main(["prepare", str(source), str(out), "--model", str(model), *options])


def contents(folder: Path) -> list[dict[str, Any]]:
    """All that the shards hold, and the index."""
    found: list[dict[str, Any]] = [json.loads((folder / INDEX).read_text())]
    for path in sorted(folder.glob("shard-*")):
        with safe_open(path, "pt") as shard:
            found.append({name: shard.get_tensor(name).tolist() for name in shard.keys()})  # noqa: SIM118
            found[-1] |= shard.metadata()
    return found


def test_the_stored_tensors_are_what_the_models_own_encoders_make_of_the_videos(
    tmp_path: Path,
) -> None:
    videos = write_shapes(tmp_path / "videos", num_videos=2, num_frames=17, side=64)
    assert prepare(videos, tmp_path / "out", TINY_WAN, "--frames", "9") == 0
    stored = PreparedFolder(tmp_path / "out")
    assert stored.captions == [str(training_captions()[n]) for n in (0, 7)]
    frames = torch.from_numpy(read_video(videos / "01.mp4")[:9]).permute(0, 3, 1, 2)
    latents = load_video_codec(TINY_WAN, "cpu").encode(frames[None])[0]
    assert stored.read(1)["latents"].shape == (16, 3, 8, 8)
    torch.testing.assert_close(stored.read(1)["latents"].float(), latents, atol=5e-3, rtol=5e-3)
    embeds = load_prompt_encoder(TINY_WAN, 64, "cpu").encode_prompt([stored.captions[1]])[0]
    tokens = stored.read(1)["prompt_embeds"]
    assert 5 < len(tokens) < 20
    torch.testing.assert_close(tokens.float(), embeds[: len(tokens)], atol=1e-2, rtol=1e-2)
    assert embeds[len(tokens) :].abs().max() == 0
    assert Path(stored.origin(1)["file"]).name == "01.mp4"
    assert Prepared(PreparedData(folder=tmp_path / "out", batch_size=2), 0).batch(0, 0, 1).prompts
    (preview,) = tmp_path.glob("out/previews/000001.mp4")
    assert np.abs(read_video(preview) - read_video(videos / "01.mp4")[:9]).mean() < 0.03
    shown = tmp_path / "shown.mp4"
    assert main(["show-data", str(tmp_path / "out"), "--index", "1", "--out", str(shown)]) == 0
    assert np.array_equal(read_video(shown), read_video(preview))


def test_for_a_model_that_continues_images_the_first_frame_is_stored_as_it_reads_it(
    tmp_path: Path,
) -> None:
    videos = write_shapes(tmp_path / "videos", num_videos=1, num_frames=5, side=64)
    options = ("--frames", "5", "--size", "64x64")
    assert prepare(videos, tmp_path / "out", Path("tiny-wan-i2v"), *options) == 0
    stored = PreparedFolder(tmp_path / "out")
    assert stored.names == ["image_latents", "latents", "prompt_embeds"]
    video = torch.full((1, 5, 3, 64, 64), 0.5)
    video[0, 0] = torch.from_numpy(read_video(videos / "00.mp4")[0]).permute(2, 0, 1)
    expected = load_video_codec(TINY_WAN, "cpu").encode(video)[0]
    image_latents = stored.read(0)["image_latents"].float()
    torch.testing.assert_close(image_latents, expected, atol=1e-2, rtol=1e-2)


def test_each_video_gets_its_size_and_what_cannot_be_prepared_is_listed_with_its_reason(
    tmp_path: Path, whole_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    noise = np.random.default_rng(0).random((9, 64, 32, 3))
    for name, video in {"tall": noise, "wide": noise.transpose(0, 2, 1, 3)}.items():
        write_video(tmp_path / "in" / f"{name}.mp4", video, 8)
        (tmp_path / "in" / f"{name}.txt").write_text(name)
    write_grey(tmp_path / "in" / "cuts.mp4", [20, 20, 20, 220, 220, 220] * 3, 8, (64, 64))
    (tmp_path / "in" / "cuts.txt").write_text("cuts")
    write_grey(tmp_path / "in" / "silent.mp4", [0] * 9, 8, (64, 64))
    options = ("--size", "32x16", "--size", "16x32", "--frames", "5", "--clips-per-video", "2")
    assert prepare(tmp_path / "in", tmp_path / "out", whole_model, *options) == 0
    stored = PreparedFolder(tmp_path / "out")
    shapes = dict(zip(stored.captions, map(tuple, stored.latent_shapes), strict=True))
    assert shapes == {"tall": (16, 2, 4, 2), "wide": (16, 2, 2, 4)}
    listed = {"cuts.mp4": "no scene has 5 frames", "silent.mp4": "it has no caption"}
    assert problems(tmp_path / "out") == listed
    assert "1 x it has no caption" in capsys.readouterr().err


def test_after_a_kill_the_same_command_goes_on_to_the_same_result(
    tmp_path: Path, videos: Path, whole_model: Path
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert prepare(videos, whole, whole_model) == 0
    command = [sys.executable, "-c", KILLED_AFTER_A_SHARD, "prepare", str(videos), str(killed)]
    ended = subprocess.run([*command, "--model", str(whole_model)], stderr=subprocess.DEVNULL)
    assert ended.returncode == -signal.SIGKILL
    assert prepared.shard_path(killed, 0).exists()
    assert not (killed / INDEX).exists()
    first = prepared.shard_path(killed, 0).stat().st_mtime_ns
    assert prepare(videos, killed, whole_model) == 0
    assert prepared.shard_path(killed, 0).stat().st_mtime_ns == first
    assert contents(killed) == contents(whole)


def test_two_ranks_prepare_what_one_does(
    tmp_path: Path, videos: Path, whole_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert prepare(videos, tmp_path / "one", whole_model) == 0
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("1", "0"):  # the first rank waits for the other
        monkeypatch.setenv("RANK", rank)
        assert prepare(videos, tmp_path / "two", whole_model) == 0
        assert (tmp_path / "two" / INDEX).exists() == (rank == "0")
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    events = (tmp_path / "two" / "events.jsonl").read_text().splitlines()
    assert [json.loads(line)["event"] for line in events] == ["started", "finished"]


def test_a_stop_file_ends_it_after_the_clip_and_an_old_one_does_not(
    tmp_path: Path, videos: Path, whole_model: Path
) -> None:
    stop = tmp_path / "out" / "control" / "stop"
    stop.parent.mkdir(parents=True)
    stop.touch()
    os.utime(stop, (time.time() + 3600,) * 2)
    assert prepare(videos, tmp_path / "out", whole_model) == 0
    assert not (tmp_path / "out" / INDEX).exists()
    os.utime(stop, (0, 0))
    assert prepare(videos, tmp_path / "out", whole_model) == 0
    assert PreparedFolder(tmp_path / "out").captions
    events = (tmp_path / "out" / "events.jsonl").read_text().splitlines()
    kinds = [json.loads(line)["event"] for line in events]
    assert kinds == ["started", "stopped", "started", "finished"]


def test_prompts_alone_are_encoded_for_one_size(tmp_path: Path, whole_model: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a red circle\na blue square moving left\n")
    options = ("--size", "48x32", "--frames", "9")
    assert prepare(tmp_path / "prompts.txt", tmp_path / "out", whole_model, *options) == 0
    settings = PreparedData(folder=tmp_path / "out", batch_size=2)
    batch = Prepared(settings, 0).batch(0, 0, 1)
    assert batch.latent_shape == (16, 3, 4, 6)
    assert batch.require("prompt").embeds.shape == (2, TEXT_LENGTH, 16)
    assert main(["show-data", str(tmp_path / "out"), "--out", str(tmp_path / "x.mp4")]) == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--fps", "8"), "fps: it means nothing for prompts alone"),
        (("--clips-per-video", "2"), "clips-per-video: it means nothing"),
        (("--size", "32x32", "--size", "16x16"), "size: prompts alone are prepared for one"),
        (("--frames", "8"), "frames: is 8 but must be 4n+1; try 9"),
        (("--model", "nothing"), "model 'nothing' is unknown"),
    ],
)
def test_what_would_be_ignored_or_cannot_be_is_refused_before_anything_is_made(
    options: tuple[str, ...],
    said: str,
    tmp_path: Path,
    whole_model: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "prompts.txt").write_text("a red circle\n")
    assert prepare(tmp_path / "prompts.txt", tmp_path / "out", whole_model, *options) == 2
    said_lines = capsys.readouterr().err.splitlines()
    assert len(said_lines) == 1
    assert said_lines[0].startswith(f"error: {said}")
    assert not (tmp_path / "out").exists()


def test_other_settings_or_another_list_do_not_mix_with_what_was_begun(
    tmp_path: Path, whole_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle\n")
    assert prepare(prompts, tmp_path / "out", whole_model) == 0
    assert prepare(prompts, tmp_path / "out", whole_model, "--frames", "9") == 2
    prompts.write_text("a red circle\na blue circle\n")
    assert prepare(prompts, tmp_path / "out", whole_model) == 2
    said = capsys.readouterr().err
    assert "was begun with another frames" in said
    assert "was begun with another list of files and captions" in said


def test_where_nothing_can_be_prepared_it_says_so_and_other_settings_may_follow(
    tmp_path: Path, videos: Path, whole_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepare(videos, tmp_path / "out", whole_model, "--frames", "17") == 2
    assert "nothing could be prepared" in capsys.readouterr().err
    assert len(problems(tmp_path / "out")) == 5
    assert prepare(videos, tmp_path / "out", whole_model) == 0


def test_its_config_asks_for_the_same_again_as_that_of_a_run(
    tmp_path: Path, videos: Path, whole_model: Path
) -> None:
    assert prepare(videos, tmp_path / "one", whole_model) == 0
    config = tmp_path / "one" / "config.yaml"
    assert "num_steps: 5" in config.read_text().splitlines()
    assert main([str(config), "name=two", "--run-dir", str(tmp_path / "two")]) == 0
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    assert main([str(config), "frames=6", "--run-dir", str(tmp_path / "three")]) == 2


def test_a_dry_run_lists_and_makes_nothing(
    tmp_path: Path, videos: Path, whole_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepare(videos, tmp_path / "out", whole_model, "--dry-run") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("00.mp4: 32x32, 8 fps, 0.6 s -> 32x32, 100% of the picture")
    assert lines[-1].startswith("5 of 5 can be prepared")
    assert not (tmp_path / "out").exists()
