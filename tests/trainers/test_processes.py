"""The loop in processes of its own: several ranks, kill, SIGTERM."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.conftest import HANG_SEC, wait_for
from tests.trainers.test_engine import SHARED, read_jsonl
from trainers.__main__ import main
from trainers.run.checkpoint import checkpoint_folders


def command(config_path: Path, run_dir: Path, *overrides: str, ranks: int = 1) -> list[str]:
    launcher = [sys.executable]
    if ranks > 1:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        launcher += ["--nproc-per-node", str(ranks)]
    return [*launcher, "-m", "trainers", str(config_path), "--run-dir", str(run_dir), *overrides]


ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}  # the number of threads changes rounding


def run_process(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        arguments, capture_output=True, text=True, env=ENVIRONMENT, timeout=HANG_SEC, check=False
    )


def start_process(arguments: list[str]) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(arguments, stdout=subprocess.DEVNULL, env=ENVIRONMENT)


def test_two_ranks_equal_one_process_with_two_micro_batches(config_tree, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config_tree("finetune", num_steps=2)))
    two = run_process(command(path, tmp_path / "two", ranks=2))
    assert two.returncode == 0, two.stderr[-2000:]
    assert main([str(path), "--run-dir", str(tmp_path / "one"), "accumulation_steps=2"]) == 0
    name = "export/transformer/diffusion_pytorch_model.safetensors"
    ours, theirs = load_file(tmp_path / "one" / name), load_file(tmp_path / "two" / name)
    for key, tensor in ours.items():
        torch.testing.assert_close(theirs[key], tensor, rtol=0, atol=2e-6, msg=key)
    figures = [read_jsonl(tmp_path / run / "metrics.jsonl") for run in ("one", "two")]
    for ours_line, theirs_line in zip(*figures, strict=True):
        for key in ("student/loss", "student/grad_norm"):
            assert ours_line[key] == pytest.approx(theirs_line[key], rel=1e-5), key


def kill_in_mid_save(process: "subprocess.Popen[bytes]", run_dir: Path) -> None:
    """Kills the process while a checkpoint is half written and another one is whole."""

    def is_saving() -> bool:
        return any((run_dir / "checkpoints").glob("*.partial"))

    while True:
        wait_for(lambda: is_saving() and bool(checkpoint_folders(run_dir)), pause_sec=0.001)
        process.send_signal(signal.SIGSTOP)
        if is_saving():
            process.send_signal(signal.SIGKILL)
            return
        process.send_signal(signal.SIGCONT)


def test_a_run_killed_in_mid_save_resumes_bitwise_equal_to_an_uninterrupted_one(
    config_tree, tmp_path: Path
) -> None:
    path = tmp_path / "config.yaml"
    tree = config_tree("dmd2", num_steps=100000, save_every=2, algorithm=SHARED)
    path.write_text(yaml.safe_dump(tree))
    killed_dir, whole_dir = tmp_path / "killed", tmp_path / "whole"
    with start_process(command(path, killed_dir)) as process:
        kill_in_mid_save(process, killed_dir)
    newest = int(checkpoint_folders(killed_dir)[-1].name.removeprefix("step_"))
    for run_dir in (killed_dir, whole_dir):
        result = run_process(command(path, run_dir, f"num_steps={newest + 3}"))
        assert result.returncode == 0, result.stderr
    events = read_jsonl(killed_dir / "events.jsonl")
    assert [event["step"] for event in events if event["event"] == "resumed"] == [newest]
    assert not list((killed_dir / "checkpoints").glob("*.partial"))
    ours, theirs = (load_file(d / "export/lora.safetensors") for d in (whole_dir, killed_dir))
    assert ours
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    steps = [line["step"] for line in read_jsonl(killed_dir / "metrics.jsonl")]
    assert steps == list(range(1, newest + 4))


def test_sigterm_saves_and_ends_cleanly(config_tree, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config_tree("finetune", num_steps=100000, save_every=100000)))
    with start_process(command(path, tmp_path / "run")) as process:
        wait_for(lambda: (tmp_path / "run" / "metrics.jsonl").exists())
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=HANG_SEC) == 0
    assert checkpoint_folders(tmp_path / "run")
    assert read_jsonl(tmp_path / "run" / "events.jsonl")[-1]["event"] == "stopped"
