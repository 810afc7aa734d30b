"""The loop: updates, resume, stop, ranks. All on a micro Wan with real FSDP and checkpoints."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
import yaml
from safetensors.torch import load_file
from torch import Tensor

from trainers.checkpoint import checkpoint_folders
from trainers.config import Ema, Trainable, TrainConfig
from trainers.distributed import World
from trainers.engine import Trainer, learning_rate
from trainers.registry import methods
from trainers.roles import load_base

ONE = World(0, 1, torch.device("cpu"))
EMA = {"student": {"learning_rate": 1e-3}, "ema": {"decay": 0.5}}
LORA = {"student": {"learning_rate": 1e-2, "lora": {"rank": 2, "alpha": 4}}}


def trainer(config: TrainConfig[Any], run_dir: Path) -> Trainer:
    component = "vae" if config.method == "autoencoder" else "transformer"
    return Trainer(config, load_base(Path(config.model), component), run_dir, ONE)


def parameters(trained: Trainer) -> dict[str, Tensor]:
    return {
        f"{role}.{name}": parameter.detach().clone()
        for role, built in trained.roles.items()
        for name, parameter in built.network.named_parameters()
    }


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("method", methods())
def test_every_method_moves_exactly_its_trained_roles_and_stays_finite(
    method: str, config, tmp_path: Path
) -> None:
    run = trainer(config(method, num_steps=2), tmp_path)
    before = parameters(run)
    assert run.train()
    for name, after in parameters(run).items():
        moves = isinstance(run.roles[name.split(".")[0]].settings, Trainable | Ema)
        assert torch.isfinite(after).all(), name
        if not moves:
            assert torch.equal(before[name], after), name
    for role, built in run.roles.items():
        if isinstance(built.settings, Trainable | Ema):
            assert any(
                not torch.equal(before[n], p)
                for n, p in parameters(run).items()
                if n.startswith(role)
            )
    figures = read_jsonl(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in figures] == [1, 2]
    assert all(line["student/loss"] > 0 for line in figures)


@pytest.mark.parametrize(
    ("method", "algorithm"),
    [("finetune", EMA), ("finetune", LORA), ("autoencoder", EMA)],
    ids=["weights and average", "lora", "autoencoder"],
)
def test_two_steps_and_three_more_equal_five_bitwise(
    method: str, algorithm: dict[str, Any], config, tmp_path: Path
) -> None:
    whole = trainer(config(method, algorithm=algorithm), tmp_path / "whole")
    whole.train()
    interrupted = trainer(config(method, algorithm=algorithm), tmp_path / "parts")
    interrupted._prepare_run_dir()
    for _ in range(2):
        interrupted.train_step()
        interrupted.step += 1
    interrupted._save()
    resumed = trainer(config(method, algorithm=algorithm), tmp_path / "parts")
    assert resumed.train()
    expected = parameters(whole)
    assert all(torch.equal(expected[name], found) for name, found in parameters(resumed).items())
    for role, optimizer in whole.optimizers.items():
        for mine, theirs in zip(
            optimizer.state.values(), resumed.optimizers[role].state.values(), strict=True
        ):
            assert all(torch.equal(mine[key], theirs[key]) for key in ("exp_avg", "exp_avg_sq"))


def test_a_lora_run_leaves_the_base_alone_and_saves_only_the_adapter(
    config, tmp_path: Path
) -> None:
    run = trainer(config("finetune", algorithm=LORA), tmp_path)
    before = parameters(run)
    run.train()
    moved = {n for n, p in parameters(run).items() if not torch.equal(before[n], p)}
    assert moved
    assert all("lora_" in name for name in moved)
    saved = dcp.FileSystemReader(checkpoint_folders(tmp_path)[-1]).read_metadata()
    weights = [n for n in saved.state_dict_metadata if n.startswith("roles.")]
    assert weights
    assert all("lora_" in name for name in weights)


def test_a_step_averages_the_loss_of_its_micro_batches(config, tmp_path: Path) -> None:
    run = trainer(config("finetune", accumulation_steps=2), tmp_path)
    (update,) = run.algorithm.updates(0)
    losses = [update.loss(run.data.batch(0, s, 2), run._rng(s)).value.item() for s in range(2)]
    assert losses[0] != losses[1]
    assert run.train_step()["student/loss"].item() == pytest.approx(sum(losses) / 2, rel=1e-5)


def test_the_stop_file_ends_the_run_with_a_checkpoint_and_the_run_goes_on_from_it(
    config, tmp_path: Path
) -> None:
    run = trainer(config("finetune"), tmp_path)
    (tmp_path / "control").mkdir()
    (tmp_path / "control" / "stop").touch()
    assert not run.train()
    assert [folder.name for folder in checkpoint_folders(tmp_path)] == ["step_000000"]
    assert not (tmp_path / "control" / "stop").exists()
    assert not (tmp_path / "export").exists()
    assert trainer(config("finetune"), tmp_path).train()
    kinds = [event["event"] for event in read_jsonl(tmp_path / "events.jsonl")]
    assert kinds == ["started", "saved", "stopped", "started", "saved", "finished"]


def test_a_step_whose_gradient_is_not_finite_is_skipped_and_named(
    config, config_tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trainer(config("finetune"), tmp_path)
    run._prepare_run_dir()
    source: Any = run.data
    source.negative = source.negative * float("nan")
    before = parameters(run)
    monkeypatch.setattr(
        source, "_read", lambda i: (torch.full((16, 2, 4, 4), torch.nan), source.negative[0])
    )
    run.train_step()
    assert all(torch.equal(before[n], p) for n, p in parameters(run).items())
    assert read_jsonl(tmp_path / "events.jsonl")[-1]["event"] == "skipped"


def test_only_the_newest_checkpoints_are_kept_and_partial_ones_are_swept(
    config, tmp_path: Path
) -> None:
    leftover = tmp_path / "checkpoints" / "step_000001.partial"
    leftover.mkdir(parents=True)
    trainer(config("finetune", save_every=1, keep_checkpoints=2), tmp_path).train()
    assert [f.name for f in checkpoint_folders(tmp_path)] == ["step_000004", "step_000005"]
    assert not leftover.exists()


def test_the_export_holds_the_average_where_one_is_kept(config, tmp_path: Path) -> None:
    run = trainer(config("finetune", algorithm=EMA), tmp_path)
    run.train()
    exported = load_file(tmp_path / "export/transformer/diffusion_pytorch_model.safetensors")
    average = dict(run.roles["ema"].network.named_parameters())
    student = dict(run.roles["student"].network.named_parameters())
    assert all(torch.equal(exported[name], average[name]) for name in average)
    assert any(not torch.equal(exported[name], student[name]) for name in student)


def test_the_learning_rate_warms_up_and_falls_as_half_a_cosine() -> None:
    settings = Trainable(learning_rate=1.0, final_learning_rate=0.1, warmup_steps=3)
    rates = [learning_rate(settings, step, 100) for step in (0, 3, 50, 100)]
    assert rates == pytest.approx([0.25, 1.0, 0.55, 0.1], abs=3e-3)


# ---------------------------------------------------------------- real processes


def command(config_path: Path, run_dir: Path, *overrides: str, ranks: int = 1) -> list[str]:
    launcher = [sys.executable]
    if ranks > 1:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        launcher += ["--nproc-per-node", str(ranks)]
    return [*launcher, "-m", "trainers", str(config_path), "--run-dir", str(run_dir), *overrides]


ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}  # the number of threads changes rounding


def run_process(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        arguments, capture_output=True, text=True, env=ENVIRONMENT, timeout=240, check=False
    )


def start_process(arguments: list[str]) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(arguments, stdout=subprocess.DEVNULL, env=ENVIRONMENT)


@pytest.mark.parametrize(("method", "num_steps"), [("finetune", 3), ("autoencoder", 1)])
def test_two_ranks_equal_one_process_with_two_micro_batches(
    method: str, num_steps: int, config_tree, tmp_path: Path
) -> None:
    # One step for the autoencoder: it has weights whose gradient is rounding alone, and Adam makes
    # a whole step of that.
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config_tree(method, num_steps=num_steps)))
    two = run_process(command(path, tmp_path / "two", ranks=2))
    assert two.returncode == 0, two.stderr[-2000:]
    one = run_process(command(path, tmp_path / "one", "accumulation_steps=2"))
    assert one.returncode == 0, one.stderr[-2000:]
    component = "vae" if method == "autoencoder" else "transformer"
    name = f"export/{component}/diffusion_pytorch_model.safetensors"
    ours, theirs = load_file(tmp_path / "one" / name), load_file(tmp_path / "two" / name)
    for key, tensor in ours.items():
        torch.testing.assert_close(theirs[key], tensor, rtol=0, atol=2e-6, msg=key)
    figures = [read_jsonl(tmp_path / run / "metrics.jsonl") for run in ("one", "two")]
    for ours_line, theirs_line in zip(*figures, strict=True):
        for key in ("student/loss", "student/grad_norm"):
            assert ours_line[key] == pytest.approx(theirs_line[key], rel=1e-5), key


def test_a_killed_run_resumes_bitwise_equal_to_an_uninterrupted_one(
    config_tree, tmp_path: Path
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config_tree("finetune", num_steps=60, save_every=5)))
    killed_dir = tmp_path / "killed"
    with start_process(command(path, killed_dir)) as process:
        wait_until(lambda: bool(checkpoint_folders(killed_dir)))
        process.send_signal(signal.SIGKILL)
    assert not (killed_dir / "export").exists()
    assert run_process(command(path, killed_dir)).returncode == 0
    assert run_process(command(path, tmp_path / "whole")).returncode == 0
    name = "export/transformer/diffusion_pytorch_model.safetensors"
    ours, theirs = load_file(tmp_path / "whole" / name), load_file(killed_dir / name)
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    steps = [line["step"] for line in read_jsonl(killed_dir / "metrics.jsonl")]
    assert steps == list(range(1, 61))


def test_sigterm_saves_and_ends_cleanly(config_tree, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config_tree("finetune", num_steps=100000, save_every=100000)))
    with start_process(command(path, tmp_path / "run")) as process:
        wait_until(lambda: (tmp_path / "run" / "metrics.jsonl").exists())
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    assert checkpoint_folders(tmp_path / "run")
    assert read_jsonl(tmp_path / "run" / "events.jsonl")[-1]["event"] == "stopped"


def wait_until(condition, timeout_sec: float = 90) -> None:
    deadline = time.monotonic() + timeout_sec
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def test_a_run_directory_of_another_configuration_is_refused(config_tree, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config_tree("finetune", num_steps=1)))
    assert run_process(command(path, tmp_path / "run")).returncode == 0
    other = run_process(command(path, tmp_path / "run", "seed=1"))
    assert other.returncode == 2
    assert "error: run-dir" in other.stderr
    shutil.rmtree(tmp_path / "run")
    assert run_process(command(path, tmp_path / "run", "seed=1")).returncode == 0
