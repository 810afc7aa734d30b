"""A Wan of a few thousand parameters and a data set for it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel

from trainers.config import TrainConfig
from trainers.data import write_prepared
from trainers.registry import algorithm_class, build_config

TEXT_DIM = 12
TEXT_LENGTH = 8


@pytest.fixture(scope="session")
def micro_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder with a transformer and a VAE, random weights."""
    folder = tmp_path_factory.mktemp("micro-wan")
    torch.manual_seed(0)
    WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=16,
        out_channels=16,
        text_dim=TEXT_DIM,
        freq_dim=16,
        ffn_dim=32,
        num_layers=2,
    ).save_pretrained(folder / "transformer")
    AutoencoderKLWan(
        base_dim=4,
        dim_mult=[1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[True, True],
        patch_size=2,
        in_channels=12,
        out_channels=12,
    ).save_pretrained(folder / "vae")
    return folder


@pytest.fixture(scope="session")
def micro_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve prepared samples with prompts of different lengths."""
    folder = tmp_path_factory.mktemp("micro-data")
    generator = torch.Generator().manual_seed(1)
    samples = [
        (
            f"caption {i}",
            torch.randn(16, 2, 4, 4, generator=generator),
            torch.randn(3 + i % 4, TEXT_DIM, generator=generator),
        )
        for i in range(12)
    ]
    write_prepared(folder, samples, torch.randn(1, TEXT_DIM, generator=generator), TEXT_LENGTH)
    return folder


@pytest.fixture
def config_tree(micro_model: Path, micro_data: Path):
    """method, settings -> the tree of a valid five-step configuration."""

    def tree(method: str, **settings: Any) -> dict[str, Any]:
        prepared = {"source": "prepared", "folder": str(micro_data), "batch_size": 2}
        stages = [{"until_step": 5, "num_frames": 5, "crop": 32, "batch_size": 2}]
        shapes = {"source": "shapes", "size": 32, "stages": stages}
        by_component = {"transformer": prepared, "vae": shapes}
        return {
            "name": "micro",
            "method": method,
            "model": str(micro_model),
            "data": by_component[algorithm_class(method).component],
            "num_steps": 5,
            "precision": "fp32",
            "device": "cpu",
            "log_every": 1,
            "algorithm": {"student": {"learning_rate": 1e-3}},
        } | settings

    return tree


@pytest.fixture
def config(config_tree):
    """method, settings -> a valid five-step configuration."""

    def build(method: str, **settings: Any) -> TrainConfig[Any]:
        return build_config(config_tree(method, **settings))

    return build
