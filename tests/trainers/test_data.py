"""Batches are a function of (seed, step, stream)."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.geometry import Geometry
from trainers.data.batches import Prepared, RenderedShapes
from trainers.data.order import stream_seed
from trainers.data.prepared import INDEX, NEGATIVE
from trainers.settings.data import PreparedData, ShapesData, Stage
from trainers.worlds.shapes import Caption


def prepared(folder: Path, seed: int = 0, batch_size: int = 3) -> Prepared:
    return Prepared(PreparedData(folder=folder, batch_size=batch_size), seed)


def test_an_epoch_shows_every_sample_once_whatever_the_number_of_streams(micro_data: Path) -> None:
    source = prepared(micro_data)
    alone = [c for step in range(4) for c in source.batch(step, 0, 1).prompts]
    pairs = [
        c for step in range(2) for rank in range(2) for c in source.batch(step, rank, 2).prompts
    ]
    assert alone == pairs
    assert len(set(alone)) == 12
    second_epoch = [c for step in range(4, 8) for c in source.batch(step, 0, 1).prompts]
    assert set(second_epoch) == set(alone)
    assert second_epoch != alone


def test_another_seed_means_another_order(micro_data: Path) -> None:
    assert prepared(micro_data, 0, 12).batch(0, 0, 1) != prepared(micro_data, 1, 12).batch(0, 0, 1)


def test_prompts_are_padded_with_zero_rows_to_the_text_length(micro_data: Path) -> None:
    batch = prepared(micro_data, batch_size=12).batch(0, 0, 1)
    assert batch.prompt is not None
    assert batch.prompt.embeds.shape == (12, 12, 16)
    lengths = {
        int(prompt.split()[1]): int(rows.abs().sum(-1).count_nonzero())
        for prompt, rows in zip(batch.prompts, batch.prompt.embeds, strict=True)
    }
    assert lengths == {i: 3 + i % 4 for i in range(12)}


@pytest.mark.parametrize("name", [INDEX, NEGATIVE, "shard-00000.safetensors"])
def test_an_incomplete_data_set_is_refused(name: str, micro_data: Path, tmp_path: Path) -> None:
    for path in micro_data.iterdir():
        if path.name != name:
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(ValueError, match=r"^data\.folder: .*prepare"):
        prepared(tmp_path)


def test_rendered_batches_follow_the_curriculum_and_repeat_exactly() -> None:
    stages = (
        Stage(until_step=2, num_frames=1, crop=32, batch_size=4),
        Stage(until_step=9, num_frames=9, crop=64, batch_size=2),
    )
    source = RenderedShapes(ShapesData(stages=stages), 0, Geometry())
    first, later = source.batch(1, 0, 1), source.batch(2, 0, 1)
    assert first.video is not None
    assert later.video is not None
    assert first.video.shape == (4, 1, 3, 32, 32)
    assert later.video.shape == (2, 9, 3, 64, 64)
    assert (first.latent_shape, later.latent_shape) == ((16, 1, 4, 4), (16, 3, 8, 8))
    assert torch.equal(first.video, source.batch(1, 0, 1).video)  # type: ignore[arg-type]
    assert not torch.equal(first.video, source.batch(1, 1, 2).video)  # type: ignore[arg-type]


def test_crops_hold_a_piece_of_the_shape_and_training_never_renders_held_out_captions() -> None:
    stage = Stage(until_step=99, num_frames=5, crop=32, batch_size=32)
    source = RenderedShapes(ShapesData(stages=(stage,)), 3, Geometry())
    batch = source.batch(0, 0, 1)
    assert batch.video is not None
    spread = np.ptp(batch.video[:, 2].numpy(), axis=(2, 3)).max(-1)
    assert (spread > 0.1).all()
    prompts = [p for step in range(10) for p in source.batch(step, 0, 1).prompts]
    assert not any(Caption.parse(prompt).held_out for prompt in prompts)


def test_neighbouring_streams_get_unrelated_seeds() -> None:
    seeds = {
        stream_seed(s, step, stream) for s in range(5) for step in range(20) for stream in range(5)
    }
    assert len(seeds) == 500
