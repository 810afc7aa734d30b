"""A Wan of a few thousand parameters and a data set for it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.pipelines.conftest import build_pipeline
from tests.trainers.data import write_prepared
from tests.trainers.runs import trainer
from trainers.data.prepared import PreparedSample
from trainers.engine import Trainer
from trainers.registry import algorithm_class, build_config
from trainers.settings.run import TrainConfig

TEXT_DIM = 16
TEXT_LENGTH = 12


@pytest.fixture(scope="session")
def whole_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole diffusers folder, text encoder and tokenizer included; 32x32, 5 frames, 3 steps."""
    folder = tmp_path_factory.mktemp("whole") / "mini"
    build_pipeline().save_pretrained(folder)
    sampler = {"num_inference_steps": 3, "flow_shift": 3.0, "guidance_scale": 5.0}
    spec = {
        "sampler": sampler,
        "text_length": TEXT_LENGTH,
        "width": 32,
        "height": 32,
        "num_frames": 5,
    }
    (folder / "sampler.json").write_text(json.dumps(spec | {"fps": 8}))
    return folder


@pytest.fixture(scope="session")
def micro_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve prepared samples with prompts of different lengths."""
    folder = tmp_path_factory.mktemp("micro-data")
    generator = torch.Generator().manual_seed(1)
    shape = (16, 2, 4, 4)
    samples = []
    for i in range(12):
        latents = torch.randn(shape, generator=generator)
        prompt_embeds = torch.randn(3 + i % 4, TEXT_DIM, generator=generator)
        tensors = {"latents": latents, "prompt_embeds": prompt_embeds}
        samples.append(PreparedSample(f"caption {i}", shape, tensors))
    write_prepared(folder, samples, torch.randn(1, TEXT_DIM, generator=generator), TEXT_LENGTH)
    return folder


@pytest.fixture
def config_tree(whole_model: Path, micro_data: Path):
    """method, settings -> the tree of a valid five-step configuration."""

    def tree(method: str, **settings: Any) -> dict[str, Any]:
        prepared = {"source": "prepared", "folder": str(micro_data), "batch_size": 2}
        stages = [{"until_step": 5, "num_frames": 5, "crop": 32, "batch_size": 2}]
        shapes = {"source": "shapes", "size": 32, "stages": stages}
        by_component = {"transformer": prepared, "vae": shapes}
        needed = algorithm_class(method).Config().reward_setting() is not None
        return {
            "name": "micro",
            "method": method,
            "model": str(whole_model),
            "data": by_component[algorithm_class(method).component],
            "num_steps": 5,
            "precision": "fp32",
            "device": "cpu",
            "log_every": 1,
            "algorithm": {"student": {"learning_rate": 1e-3}},
            "reward": {"kind": "motion", "settings": {"enough": 1.0}} if needed else None,
        } | settings

    return tree


@pytest.fixture
def config(config_tree):
    """method, settings -> a valid five-step configuration."""

    def build(method: str, **settings: Any) -> TrainConfig[Any]:
        return build_config(config_tree(method, **settings))

    return build


@pytest.fixture
def start(config_tree, tmp_path: Path):
    """Settings of the validation (None: there is none), and of the run -> a trainer in tmp_path."""

    def build(validation: dict[str, Any] | None, **settings: Any) -> Trainer:
        always = {"every": 1, "prompts": ["a red circle moving left"]}
        student = {"learning_rate": 3e-3}
        usual = {
            "num_steps": 4,
            "save_every": 1,
            "keep_checkpoints": 1,
            "log_every": 10,
            "algorithm": {"student": student, "num_student_steps": 2},
            "validation": None if validation is None else always | validation,
        }
        tree = config_tree("step_distill") | usual | settings
        return trainer(
            build_config(tree), tmp_path if validation is not None else tmp_path / "bare"
        )

    return build
