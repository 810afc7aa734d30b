"""The loop: updates, resume, stop, ranks. All on a micro Wan with real FSDP and checkpoints."""

import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
import yaml
from safetensors.torch import load_file
from torch import Tensor

from tests.trainers.runs import read_jsonl, trainer
from trainers.__main__ import main
from trainers.engine import Trainer
from trainers.networks.optimizer import learning_rate
from trainers.registry import algorithm_class, methods
from trainers.run.checkpoint import checkpoint_folders
from trainers.run.log import MAX_IN_A_ROW
from trainers.settings.roles import Ema, Trainable

EMA = {"student": {"learning_rate": 1e-3}, "ema": {"decay": 0.5}}
LORA = {"student": {"learning_rate": 1e-2, "lora": {"rank": 2, "alpha": 4}}}


SHARED = {  # DMD2 with everything that has a state of its own, on one base
    "student": {"learning_rate": 1e-2, "lora": {"rank": 2}},
    "critic": {"learning_rate": 1e-2, "lora": {"rank": 2}, "pull": {"decay": 0.9}},
    "ema": {"decay": 0.5, "start_step": 3},
    "student_every": 2,
}


def every_parameter(trained: Trainer) -> Iterator[torch.nn.Parameter]:
    for role in trained.roles.values():
        yield from role.network.parameters()


def parameters(trained: Trainer) -> dict[str, Tensor]:
    return {
        f"{role}.{name}": parameter.detach().clone()
        for role, built in trained.roles.items()
        for name, parameter in built.network.named_parameters()
    }


def own_roles(method: str, **settings: Any) -> dict[str, Any]:
    """The settings of every network that a method trains, and of its moving averages."""
    roles = algorithm_class(method).Config().roles()
    trained = [name for name, role in roles.items() if isinstance(role, Trainable)]
    tree: dict[str, Any] = {name: {"learning_rate": 1e-2} | settings for name in trained}
    if "ema" in algorithm_class(method).Config.model_fields:
        tree["ema"] = {"decay": 0.5}
    if method == "flash_grpo":  # the micro model's own sampler is not the ODE's
        tree["sampler"] = {"name": "euler", "num_inference_steps": 3, "guidance_scale": 5.0}
    return tree


FORMS = [(method, {}) for method in methods()]
FORMS += [(method, {"lora": {"rank": 2}}) for method in methods() if method != "autoencoder"]
GAN = {"discriminator": {"learning_rate": 1e-2}, "rollout": "data"}
CONTRACTS = [(method, own_roles(method, **lora)) for method, lora in FORMS]
CONTRACTS += [("dmd2", own_roles("dmd2", **lora) | GAN) for _, lora in (FORMS[0], FORMS[-1])]
REWARDED = {"reward": {"beta": 1.0, "gradient_weight": 0.1}, "student_every": 1}
CONTRACTS += [("dmd2", own_roles("dmd2") | GAN | REWARDED)]
REWARD = {"kind": "motion", "settings": {"enough": 1.0}}


def questions_before_anything_moves(run: Trainer) -> list[int]:
    """The steps at which the reward is asked; it fails where a network has moved in that step."""
    asked, moved = [], set()
    score = run.algorithm.score
    for optimizer in run.optimizers.values():
        optimizer.register_step_post_hook(lambda *_: moved.add(run.step))

    class Question:
        differentiable = getattr(score, "differentiable", False)

        def __call__(self, *question: Any) -> Tensor:
            assert run.step not in moved
            asked.append(run.step)
            return score(*question)

    run.algorithm.score = Question()
    return asked


@pytest.mark.parametrize(
    ("method", "algorithm"),
    CONTRACTS,
    ids=lambda value: "" if isinstance(value, str) else "lora" * ("lora" in value["student"]),
)
def test_every_method_moves_exactly_its_trained_roles_and_stays_finite(
    method: str, algorithm: dict[str, Any], config, tmp_path: Path
) -> None:
    settings = {"reward": REWARD} if "reward" in algorithm else {}
    run = trainer(config(method, num_steps=2, algorithm=algorithm, **settings), tmp_path)
    asked = questions_before_anything_moves(run)
    before = {id(parameter): parameter.detach().clone() for parameter in every_parameter(run)}
    assert run.train()
    assert all(torch.isfinite(parameter).all() for parameter in every_parameter(run))
    moved = {id(p) for p in every_parameter(run) if not torch.equal(before[id(p)], p)}
    moving = {
        name: {id(parameter) for parameter in role.own_parameters.values()}
        for name, role in run.roles.items()
        if isinstance(role.settings, Trainable | Ema)
    }
    assert moved <= set().union(*moving.values())
    assert [name for name, own in moving.items() if not moved & own] == []
    assert not any(parameter.grad is not None for parameter in every_parameter(run))
    figures = read_jsonl(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in figures] == [1, 2]
    assert all(math.isfinite(line["student/loss"]) for line in figures)
    reads_reward = run.config.algorithm.reward_setting() is not None
    assert set(asked) == ({0, 1} if reads_reward else set())


RESUMED = {
    "weights and average": ("finetune", EMA),
    "lora": ("finetune", LORA),
    "autoencoder": ("autoencoder", EMA),
    "dmd2 on a shared base": ("dmd2", SHARED),
    "dmd2 with a discriminator": ("dmd2", own_roles("dmd2") | GAN | {"student_every": 2}),
    "rewards": ("nft", own_roles("nft", lora={"rank": 2})),
    "guidance embedder": ("cfg_distill", own_roles("cfg_distill", lora={"rank": 2})),
}


@pytest.mark.parametrize(("method", "algorithm"), RESUMED.values(), ids=RESUMED)
def test_two_steps_and_three_more_equal_five_bitwise(
    method: str, algorithm: dict[str, Any], config, tmp_path: Path
) -> None:
    whole = trainer(config(method, algorithm=algorithm), tmp_path / "whole")
    whole.train()
    interrupted = trainer(config(method, algorithm=algorithm), tmp_path / "parts")
    interrupted.folder.begin()
    for _ in range(2):
        interrupted.train_step()
        interrupted.step += 1
    interrupted._save()
    resumed = trainer(config(method, algorithm=algorithm), tmp_path / "parts")
    assert resumed.train()
    expected = parameters(whole)
    assert all(torch.equal(expected[name], found) for name, found in parameters(resumed).items())
    for role, optimizer in whole.optimizers.items():
        assert optimizer.state
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
    losses = [update.loss(run.data.batch(0, s, 2), run._rng(s, 0)).value.item() for s in range(2)]
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


def spoil(run: Trainer, captions: set[str]) -> None:
    """Puts a NaN into the latents of these captions."""
    files: Any = run.data.files  # type: ignore[attr-defined]
    read = type(files).read

    def spoilt(index: int) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = read(files, index)
        if files.captions[index] in captions:
            tensors["latents"] = tensors["latents"] * float("nan")
        return tensors

    files.read = spoilt


@pytest.mark.parametrize("method", ["finetune", "dmd2"])
def test_a_nan_in_a_batch_skips_the_step_is_counted_and_names_its_prompts(
    method: str, config, tmp_path: Path
) -> None:
    algorithm = own_roles(method) | ({"rollout": "data"} if method == "dmd2" else {})
    run = trainer(config(method, accumulation_steps=2, algorithm=algorithm), tmp_path)
    run.folder.begin()
    bad = run.data.batch(0, 1, 2).prompts
    spoil(run, set(bad))
    before = parameters(run)
    figures = run.train_step()
    assert all(torch.equal(before[n], p) for n, p in parameters(run).items())
    skipped = [e for e in read_jsonl(tmp_path / "events.jsonl") if e["event"] == "skipped"]
    assert [event["role"] for event in skipped] == list(run.optimizers)
    for event in skipped:
        assert (event["step"], event["reason"]) == (0, "loss not finite")
        assert event["prompts"] == list(bad)
        assert figures[f"{event['role']}/num_skipped"] == 1
    spoil(run, set())
    assert run.train_step()["student/num_skipped"] == 1  # the same step, whole
    assert any(not torch.equal(before[n], p) for n, p in parameters(run).items())


def test_a_role_that_is_never_finite_ends_the_run_though_another_one_goes_on(
    config, tmp_path: Path
) -> None:
    every_step = own_roles("dmd2") | {"student_every": 1}
    run = trainer(config("dmd2", num_steps=99, algorithm=every_step), tmp_path)
    teacher: Any = run.roles["teacher"].network
    with torch.no_grad():
        teacher.proj_out.bias.fill_(torch.nan)
    with pytest.raises(ValueError, match=r"^algorithm\.student\.learning_rate: .* not finite"):
        run.train()
    assert run.step == MAX_IN_A_ROW - 1


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


def test_a_run_directory_of_another_configuration_is_refused(
    config_tree, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config_tree("finetune", num_steps=1)))
    arguments = [str(path), "--run-dir", str(tmp_path / "run")]
    assert main(arguments) == 0
    assert main([*arguments, "seed=1"]) == 2
    assert "error: run-dir" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "run")
    assert main([*arguments, "seed=1"]) == 0
