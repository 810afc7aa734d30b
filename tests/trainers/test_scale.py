"""Many ranks, long videos, large bases: what must not change, and what it must not cost."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from pipelines.catalog.registry import Registry
from tests.conftest import HANG_SEC
from tests.trainers import two_ranks
from trainers.__main__ import main
from trainers.engine import Trainer
from trainers.networks import performance
from trainers.networks.models import load_models
from trainers.ranks.ranks import Ranks, join_ranks
from trainers.registry import build_config
from trainers.settings.run import Parallel, TrainConfig

ONE = Ranks(0, 1, torch.device("cpu"))
LORA = {"rank": 4, "alpha": 4}
SHARED = {  # both optimizers, every step, on one base
    "student_every": 1,
    "student": {"learning_rate": 1e-2, "lora": LORA, "max_grad_norm": 1e-3},
    "critic": {"learning_rate": 1e-2, "lora": LORA},
    "ema": {"decay": 0.5},
}
Roles = dict[str, dict[str, Tensor]]


def trainer(config: TrainConfig[Any], run_dir: Path) -> Trainer:
    return Trainer(config, Registry(), run_dir, ONE)


@pytest.fixture(scope="module")
def tree(whole_model: Path, micro_data: Path) -> dict[str, Any]:
    return {
        "name": "micro",
        "method": "dmd2",
        "model": str(whole_model),
        "data": {"source": "prepared", "folder": str(micro_data), "batch_size": 2},
        "num_steps": 2,
        "precision": "fp32",
        "device": "cpu",
        "log_every": 1,
        "algorithm": SHARED,
    }


@pytest.fixture(scope="module")
def layouts(tree: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two ranks ran every layout of two_ranks.py."""
    out = tmp_path_factory.mktemp("layouts")
    (out / "config.yaml").write_text(yaml.safe_dump(tree))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    arguments = [
        "--nproc-per-node",
        "2",
        "-m",
        two_ranks.__name__,
        str(out / "config.yaml"),
        str(out),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        [*launcher, *arguments],
        capture_output=True,
        text=True,
        env=environment,
        timeout=HANG_SEC,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    return out


def figures(run_dir: Path) -> Iterator[dict[str, float]]:
    for line in (run_dir / "metrics.jsonl").read_text().splitlines():
        yield {k: v for k, v in json.loads(line).items() if k.endswith(("loss", "grad_norm"))}


@pytest.mark.parametrize("layout", two_ranks.LAYOUTS)
def test_two_ranks_train_every_role_as_one_process_does(
    layout: str, layouts: Path, tree: dict[str, Any], tmp_path: Path
) -> None:
    settings = two_ranks.LAYOUTS[layout]
    shared_batch = settings.get("parallel", {}).get("context", 1) == 2
    one_rank = {"parallel": {}, "accumulation_steps": 1 if shared_batch else 2}
    one = trainer(build_config(tree | settings | one_rank), tmp_path)
    one.train()
    # Splitting tokens sums in another order, which bf16 rounds to other numbers; Adam's first steps
    # are signs of gradients, so that what is rounded away comes back in the next losses.
    exact = not (shared_batch and settings.get("precision") == "bf16")
    pairs = zip(figures(tmp_path), figures(layouts / layout), strict=True)
    for number, (ours, theirs) in enumerate(pairs):
        close = (1e-5 if number == 0 else 1e-3) if exact else (2e-3 if number == 0 else 0.05)
        assert theirs == pytest.approx(ours, rel=close)
    roles: Roles = torch.load(layouts / layout / "roles.pt")
    for name, weights in roles.items():
        own = one.roles[name].own_parameters
        assert weights.keys() == own.keys()
        for key, weight in weights.items():
            if exact:
                torch.testing.assert_close(weight, own[key].detach(), rtol=0, atol=2e-4, msg=key)


@pytest.mark.parametrize("layout", two_ranks.LAYOUTS)
def test_adapters_and_their_average_lie_in_pieces(layout: str, layouts: Path) -> None:
    pieces = json.loads((layouts / layout / "pieces.json").read_text())
    assert pieces == {"student": True, "critic": True, "ema": True}


def test_two_ranks_resume_bitwise(layouts: Path) -> None:
    whole: Roles = torch.load(layouts / "sharded" / "roles.pt")
    resumed: Roles = torch.load(layouts / "resumed" / "roles.pt")
    for name, weights in whole.items():
        assert all(torch.equal(weight, resumed[name][key]) for key, weight in weights.items())


def test_heads_and_tokens_that_cannot_be_shared_are_named_on_every_rank(layouts: Path) -> None:
    for rank in range(2):
        said = json.loads((layouts / f"refusals{rank}.json").read_text())
        assert said["heads"].startswith("parallel.context: 2 ranks cannot share 3 attention heads")
        assert said["tokens"].startswith("parallel.context: 2 ranks cannot share the 1 tokens")


@pytest.mark.parametrize(
    ("parallel", "field"),
    [
        (Parallel(context=2), "parallel.context"),
        (Parallel(replicate=2), "parallel.replicate"),
        (Parallel(shard=2), "parallel.shard"),
        (Parallel(cpu_offload=True), "parallel.cpu_offload"),
    ],
)
def test_sizes_that_do_not_fit_the_ranks_are_named(parallel: Parallel, field: str) -> None:
    with pytest.raises(ValueError, match=f"^{field}: "):
        join_ranks("cpu", parallel)


def num_bytes(parameters: set[nn.Parameter]) -> int:
    return sum(p.numel() * p.element_size() for p in parameters)


def test_the_roles_of_dmd2_hold_one_base(tree: dict[str, Any], tmp_path: Path) -> None:
    config = build_config(tree)
    base = num_bytes(set(load_models(config, Registry())[""].network.parameters()))
    roles = trainer(config, tmp_path).roles
    held = {p for role in roles.values() for p in role.network.parameters()}
    adapters = {p for role in roles.values() if role.adapter for p in role.own_parameters.values()}
    assert num_bytes(held) <= 1.02 * (base + num_bytes(adapters))
    assert num_bytes(held) >= base + num_bytes(adapters)


def test_bf16_storage_of_the_frozen_base_changes_no_gradient(
    tree: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = build_config(tree | {"precision": "bf16"})
    stored = trainer(config, tmp_path)
    block = stored.roles["student"].network.blocks[0]
    assert block.attn1.to_q.base_layer.weight.dtype == torch.bfloat16
    assert block.attn1.norm_q.weight.dtype == torch.float32
    assert block.attn1.to_q.lora_A["ema"].weight.dtype == torch.float32
    monkeypatch.setattr(performance, "store_frozen_in_bf16", lambda *roles: None)
    assert gradients(stored) == gradients(trainer(config, tmp_path))


def gradients(run: Trainer) -> dict[str, list[float]]:
    """Of one step's losses, by role and parameter, after the roles moved apart."""
    generator = torch.Generator().manual_seed(3)
    for name in ("student", "critic"):
        for parameter in run.roles[name].own_parameters.values():
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    found = {}
    for number, update in enumerate(run.algorithm.updates(0)):
        with performance.autocast(run.config.precision, ONE):
            loss = update.loss(run.data.batch(0, 0, 1), run._rng(0, number))
        loss.value.backward()
        for name, parameter in run.roles[update.role].trained.items():
            assert parameter.grad is not None
            found[f"{update.role}.{name}"] = parameter.grad.flatten().tolist()
            parameter.grad = None
    return found


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_checkpointed_blocks_give_the_same_gradients_to_roles_on_one_base(
    precision: str, tree: dict[str, Any], tmp_path: Path
) -> None:
    plain = build_config(tree | {"precision": precision})
    checkpointed = build_config(tree | {"precision": precision, "activation_checkpointing": True})
    assert gradients(trainer(plain, tmp_path)) == gradients(trainer(checkpointed, tmp_path))


def test_a_backward_under_another_adapter_is_refused(tree: dict[str, Any], tmp_path: Path) -> None:
    run = trainer(build_config(tree | {"activation_checkpointing": True}), tmp_path)
    student: Any = run.roles["student"].call
    student.switch.activate("student")
    (velocity,) = student.transformer(
        hidden_states=torch.randn(1, 16, 1, 4, 4),
        timestep=torch.ones(1),
        encoder_hidden_states=torch.randn(1, 8, 16),
        return_dict=False,
    )
    student.switch.activate("critic")
    with pytest.raises(RuntimeError, match="'critic' but forward ran with 'student'"):
        velocity.sum().backward()


def test_a_dry_run_plans_14b_without_its_weights(
    tree: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "prompts.txt").write_text("a cat")
    prompts = {"source": "prompts", "file": str(tmp_path / "prompts.txt"), "width": 832}
    plan = tree | {"model": "wan2.1-t2v-14b", "precision": "bf16", "data": prompts}
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan))
    arguments = [str(tmp_path / "plan.yaml"), "parallel.shard=8", "--dry-run"]
    assert main([*arguments, "--run-dir", str(tmp_path / "run")]) == 0
    shown = capsys.readouterr().out
    assert "14288.49 M frozen, held once" in shown  # what the model's authors count
    rows = {line.split()[0]: line.split()[1] for line in shown.splitlines() if " GB" in line}
    assert 28.6 / 8 < float(rows["weights"]) < 28.6 / 8 + 2 * 0.8  # two blocks are gathered
    inputs = 40 * 32760 * 5120 * 2 / 1e9  # what 40 blocks read, in bf16
    assert inputs < float(rows["checkpointed"]) < float(rows["activations"]) / 10
    assert not (tmp_path / "run").exists()


def test_a_dry_run_counts_the_runs_of_every_role(
    tree: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one_step = {"name": "lcm", "num_inference_steps": 1, "guidance_mode": "off"}
    sampler = one_step | {"guidance_scale": 1.0}
    algorithm = SHARED | {"student_every": 2, "sampler": sampler}
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(tree | {"algorithm": algorithm}))
    assert main([str(tmp_path / "plan.yaml"), "--dry-run"]) == 0
    shown = [line.split() for line in capsys.readouterr().out.splitlines()]
    runs = {line[0]: (line[1], line[3]) for line in shown if line[-1:] == ["backwards"]}
    # One rollout for each update; half of the steps ask the guided teacher and move the student.
    assert runs["student"] == ("1.50", "0.50")
    assert runs["teacher"] == ("1.00", "0.00")
    assert runs["critic"] == ("1.50", "1.00")
