"""What a run hands over: from any of its checkpoints, in the precision students are stored in."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from pipelines.catalog.registry import Registry
from trainers.__main__ import main

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
STEPS = {"num_steps": 2, "save_every": 1, "keep_checkpoints": 2}


def train(tree: dict[str, Any], run_dir: Path, *arguments: str) -> int:
    run_dir.parent.mkdir(exist_ok=True)
    config = run_dir.parent / "config.yaml"
    config.write_text(yaml.safe_dump(tree))
    return main([str(config), "--run-dir", str(run_dir), *arguments])


def test_a_checkpoint_is_exported_and_found_by_run_and_step(
    config_tree: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = config_tree("step_distill", **STEPS)
    run_dir = tmp_path / "runs" / "few"
    assert train(tree, run_dir) == 0
    for step in (1, 2):
        assert train(tree, run_dir, "--export", str(step)) == 0
    models = Registry([Path(tree["model"]).parent], runs_dir=run_dir.parent).models()
    assert {"few", "few@1", "few@2"} <= models.keys()
    assert models["few@1"].missing is None
    first, second = (load_file(run_dir / f"exports/step_00000{step}" / WEIGHTS) for step in (1, 2))
    last = load_file(run_dir / "export" / WEIGHTS)
    assert all(torch.equal(second[name], last[name]) for name in last)
    assert any(not torch.equal(first[name], last[name]) for name in last)
    assert train(tree, run_dir, "--export", "7") == 2
    assert "no checkpoint at step 7; it has 1, 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("method", "dtype"), [("step_distill", torch.float16), ("finetune", torch.float32)]
)
def test_students_are_stored_as_fp16_and_base_models_as_fp32(
    method: str, dtype: torch.dtype, config_tree: Any, tmp_path: Path
) -> None:
    assert train(config_tree(method, **STEPS), tmp_path / "run") == 0
    weights = load_file(tmp_path / "run" / "export" / WEIGHTS)
    assert {weight.dtype for weight in weights.values()} == {dtype}
