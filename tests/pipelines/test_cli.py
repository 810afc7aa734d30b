import json
import pickle
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.__main__ import main
from pipelines.video import read_recipe
from tests.conftest import HANG_SEC


@pytest.fixture
def command(models_dir: Path, tmp_path: Path) -> list[str]:
    """`generate` with all that it must have."""
    required = ["--model", "mini", "--prompt", "a red circle", "--out", str(tmp_path / "clip.mp4")]
    return ["generate", "--models", str(models_dir), *required]


def test_generate_writes_the_clip_that_the_options_describe(
    command: list[str], lora_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = "--seed 4 --steps 2 --shift 8 --guidance 3 --sampler euler --size 48x32 --frames 9"
    lora = ["--lora", f"{lora_file}:0.5", "--lora-alpha", "2"]
    more = ["--fps", "12", "--negative-prompt", "black", "--device", "cpu"]
    assert main([*command, *options.split(), *lora, *more]) == 0
    recipe = read_recipe(tmp_path / "clip.mp4")
    assert (recipe.width, recipe.height, recipe.num_frames, recipe.fps) == (48, 32, 9, 12)
    assert (recipe.seed, recipe.negative_prompt) == (4, "black")
    sampler = recipe.sampler
    assert (sampler.name, sampler.num_inference_steps) == ("euler", 2)
    assert (sampler.flow_shift, sampler.guidance_scale) == (8, 3)
    (adapter,) = recipe.adapters
    assert (adapter.path, adapter.strength, adapter.lora_alpha) == (str(lora_file), 0.5, 2)
    assert adapter.fingerprint
    output = capsys.readouterr()
    assert re.search(r"denoise \d\.\d\d s, .* total \d\.\d\d s, 4 forwards", output.out)
    assert re.search(r"denoise 1/2, ETA \d+\.\d s", output.err)


def test_left_out_options_are_the_checkpoints_own(command: list[str], tmp_path: Path) -> None:
    assert main(command) == 0
    recipe = read_recipe(tmp_path / "clip.mp4")
    assert (recipe.sampler.num_inference_steps, recipe.sampler.guidance_scale) == (3, 5)
    assert (recipe.width, recipe.num_frames, recipe.fps) == (32, 5, 8)


def test_explicit_sigmas_set_the_steps(command: list[str], tmp_path: Path) -> None:
    assert main([*command, "--sigmas", "1.0,0.5", "--sampler", "lcm", "--guidance", "1"]) == 0
    sampler = read_recipe(tmp_path / "clip.mp4").sampler
    assert (sampler.sigmas, sampler.num_inference_steps) == ((1.0, 0.5), 2)


def test_show_prints_the_recipe_inside_a_clip(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([*command, "--steps", "1"])
    capsys.readouterr()
    assert main(["show", str(tmp_path / "clip.mp4")]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown == read_recipe(tmp_path / "clip.mp4").model_dump(mode="json")


def test_models_lists_what_is_here_and_what_is_missing(
    models_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["models", "--models", str(models_dir)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(re.match(r"mini +base +unipc 3 steps, .* available$", line) for line in lines)
    assert any(re.match(r"wan2.1-t2v-14b +base .* missing: Wan-AI/", line) for line in lines)
    assert main(["models", "--models", str(models_dir), "--json"]) == 0
    listed = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert listed["mini"]["available"]
    assert listed["tiny-wan"]["kind"] == "base"
    assert listed["wan2.1-t2v-1.3b"]["missing"]
    assert listed["mini"]["sampler"]["num_inference_steps"] == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--frames 18", "num_frames is 18 but must be 4n+1; try 17"),
        ("--size 65x64", "width is 65 but must be a multiple of 16; try 64"),
        ("--size 64", "size is '64' but must be WIDTHxHEIGHT"),
        ("--size 64x-64", "size is '64x-64' but must be WIDTHxHEIGHT"),
        ("--model mino", "model 'mino' is unknown; did you mean mini"),
        ("--lora absent.safetensors", "adapter absent.safetensors does not exist"),
        ("--lora absent.safetensors:0.5", "adapter absent.safetensors does not exist"),
        ("--lora absent.safetensors:99", "strength: Input should be less than or equal to 10"),
        ("--lora-alpha 3", "lora_alpha is given without a LoRA"),
        ("--steps 0", "num_inference_steps: Input should be greater than or equal to 1, not 0"),
        ("--sigmas 1.0,x", "sigmas is '1.0,x' but must be numbers"),
        ("--sigmas 0.5,1.0", "sigmas must descend"),
        ("--seed -1", "seed: Input should be greater than or equal to 0"),
        ("--guidance 1 --negative-prompt ugly", "negative_prompt is read only with"),
        ("--out clip.avi", "out is 'clip.avi' but must be the name of an .mp4 file"),
        ("--models absent", "models folder absent does not exist"),
        ("--device tpu", "device is 'tpu' but this machine has no such; use c"),
    ],
)
def test_bad_input_is_one_sentence_exit_code_2_and_nothing_written(
    options: str,
    message: str,
    command: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([*command, *options.split()]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("error: ")
    assert message in output.err
    assert output.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_lora_that_is_damaged_or_a_pickle_with_code_is_refused(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    marker = tmp_path / "ran"

    class Payload:
        def __reduce__(self) -> tuple[object, tuple[str, str]]:
            return open, (str(marker), "w")

    hostile = tmp_path / "hostile.pt"
    hostile.write_bytes(pickle.dumps(Payload()))
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(b"\x10" + bytes(40))
    for path, message in ((hostile, "not a pickle of plain weights"), (damaged, "are damaged")):
        assert main([*command, "--lora", str(path)]) == 2
        last = capsys.readouterr().err.splitlines()[-1]
        assert last.startswith("error: ")
        assert message.split()[-1] in last
    assert not marker.exists()
    assert not (tmp_path / "clip.mp4").exists()


def test_show_of_something_else_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["show", str(tmp_path / "absent.mp4")]) == 2
    assert "does not exist" in capsys.readouterr().err


def test_ctrl_c_ends_with_130_and_leaves_nothing(command: list[str], tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines", *command, "--steps", "1000", "--size", "128x128"],
        stderr=subprocess.PIPE,
        text=True,
        # Started in the background, the tests themselves may have been told to ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stderr is not None
    while not (line := process.stderr.readline()).startswith("denoise 2/"):
        assert line, "it has ended"
    process.send_signal(signal.SIGINT)
    rest = process.stderr.read()
    assert process.wait(HANG_SEC) == 130
    assert "cancelled" in rest
    assert "Traceback" not in rest
    assert list(tmp_path.iterdir()) == []
