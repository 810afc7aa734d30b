"""Presets, overrides and their errors."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from trainers.__main__ import main
from trainers.registry import FOLDER, algorithm_class, build_config, methods, read_tree

PRESETS = sorted(Path("presets/train").glob("*.yaml"))


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_every_preset_validates_and_survives_a_round_trip(path: Path) -> None:
    config = build_config(read_tree(path))
    assert build_config(yaml.safe_load(yaml.safe_dump(config.model_dump(mode="json")))) == config


def test_every_file_in_the_folder_is_a_method() -> None:
    assert methods() == sorted(p.stem for p in FOLDER.glob("*.py") if p.stem != "__init__")
    for method in methods():
        assert algorithm_class(method).Config.model_fields["student"]


def test_overrides_win_over_the_preset(config_tree, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(config_tree("finetune")))
    config = build_config(read_tree(path, ["num_steps=7", "algorithm.student.lora.rank=3"]))
    assert config.num_steps == 7
    assert config.algorithm.student.lora.rank == 3
    assert config.algorithm.student.learning_rate == 1e-3


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("nmu_steps=3", "nmu_steps: is not a known setting"),
        ("algorithm.student.lr=1", "algorithm.student.lr: is not a known setting"),
        ("num_steps=0", "num_steps: Input should be greater than 0"),
        ("method=finetnue", "there is no method 'finetnue'; did you mean 'finetune'"),
        ("data.source=parquet", "data: Input tag 'parquet'"),
        ("num_steps", "must look like key=value"),
        ("name.deep=1", "'name' holds a value"),
        ("name=../evil", "name: String should match pattern"),
        ("algorithm.ema.decay=1.5", "algorithm.ema.decay: Input should be less than 1"),
    ],
)
def test_a_wrong_setting_is_one_sentence_that_names_the_field(
    override: str, message: str, config_tree, tmp_path: Path
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(config_tree("finetune")))
    with pytest.raises(ValueError) as caught:
        build_config(read_tree(path, [override]))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("method", "algorithm", "message"),
    [
        (
            "dmd2",
            {"real_score_guidance_scale": 3.5},
            "algorithm.real_score_guidance_scale: .*set guidance_scale = w \\+ 1 = 4.5$",
        ),
        (
            "cfg_distill",
            {"guidance": {"w": 4}},
            "algorithm.guidance.w: .*set guidance_scale = w \\+ 1 = 5$",
        ),
        ("dmd2", {"guidance_w": "four"}, "algorithm.guidance_w: .*guidance_scale = w \\+ 1$"),
        (
            "dmd2",
            {"sampler": {"name": "lcm", "sigmas": [0.5, 0.75], "num_inference_steps": 2}},
            "algorithm.sampler: sigmas must descend, for example ",
        ),
    ],
)
def test_another_projects_guidance_and_steps_in_disorder_are_set_right_by_name(
    method: str, algorithm: dict[str, Any], message: str, config_tree
) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        build_config(config_tree(method, algorithm=algorithm))


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: [", "is not YAML"), ("- 1", "must hold settings"), ("name: x", "method: name one of")],
)
def test_a_file_that_is_no_configuration_is_refused(
    text: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        build_config(read_tree(path))


def test_a_dry_run_prints_the_resolved_configuration_and_trains_nothing(
    config_tree, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(config_tree("finetune")))
    run_dir = tmp_path / "run"
    assert main([str(path), "num_steps=9", "--dry-run", "--run-dir", str(run_dir)]) == 0
    told = capsys.readouterr().out
    assert "num_steps: 9" in told
    assert "parameters" in told
    assert "memory a rank" in told
    assert not run_dir.exists()


def test_an_estimate_is_json_with_the_figures_of_a_dry_run(
    config_tree, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(config_tree("finetune")))
    assert main([str(path), "--dry-run"]) == 0
    told = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert main([str(path), "--estimate"]) == 0
    found = json.loads(capsys.readouterr().out)
    for title, rows in found["groups"]:
        assert title in told
        assert {" ".join(f"{name} {figure}".split()) for name, figure in rows} <= set(told)
    assert found["flops"] > 0
    assert all(any(line.endswith(where) for line in told) for where in found["speeds"])


def test_a_preparation_has_no_estimate_and_does_not_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "data.yaml"
    path.write_text(yaml.safe_dump({"method": "prepare", "name": "data"}))
    assert main([str(path), "--estimate", "--run-dir", str(tmp_path / "run")]) == 2
    assert "there is no method 'prepare'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("attention_backend=flush", "error: attention_backend: choose one of flash"),
        ("model=no-such-model", "error: model 'no-such-model'"),
        ("data.folder=/nowhere", "error: data.folder: /nowhere holds no finished data set"),
        (
            "algorithm.student.lora.targets=[to_z]",
            "error: algorithm.student.lora.targets: no linear",
        ),
        ("algorithm.ema.of=teacher", "error: algorithm.ema.of: there is no trained role 'teacher'"),
    ],
)
def test_bad_input_ends_with_code_2_and_one_sentence(
    override: str, message: str, config_tree, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(config_tree("finetune")))
    assert main([str(path), override, "--run-dir", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith(message)
    assert not (tmp_path / "run" / "config.yaml").exists()
