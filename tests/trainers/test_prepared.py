"""Prepared data on disk: named tensors, whole shards, the index last."""

import json
from pathlib import Path

import pytest
import torch

from pipelines.geometry import Geometry
from studio.data.preparing import read_index
from tests.trainers.data import write_prepared
from trainers.data import prepared
from trainers.data.batches import Prepared
from trainers.data.prepared import INDEX, PreparedFolder, PreparedSample
from trainers.settings.data import PreparedData

SHAPE = (16, 2, 4, 4)


def sample(number: int, **more: torch.Tensor) -> PreparedSample:
    tensors = {"latents": torch.full(SHAPE, number), "prompt_embeds": torch.ones(number + 1, 8)}
    return PreparedSample(f"caption {number}", SHAPE, tensors | more, {"file": f"{number}.mp4"})


def test_any_named_tensors_of_a_sample_come_back_with_its_caption_and_origin(
    tmp_path: Path,
) -> None:
    image_embeds = torch.rand(5, 7).half()
    prepared.write_shard(tmp_path, 0, [sample(0, image_embeds=image_embeds)])
    prepared.write_shard(tmp_path, 1, [], problems=["1.mp4 is damaged"])
    prepared.write_shard(tmp_path, 2, [sample(2, image_embeds=2 * image_embeds)])
    assert prepared.summary(tmp_path, 3) == (2, ["1.mp4 is damaged"])
    prepared.finish(tmp_path, 3, torch.ones(1, 8), text_length=6)
    stored = PreparedFolder(tmp_path)
    assert stored.captions == ["caption 0", "caption 2"]
    assert torch.equal(stored.read(1)["image_embeds"], 2 * image_embeds)
    assert stored.read(1)["prompt_embeds"].shape == (3, 8)
    assert stored.origin(1) == {"file": "2.mp4"}


def test_prompts_alone_make_batches_of_the_shape_that_they_were_prepared_for(
    tmp_path: Path,
) -> None:
    alone = [
        PreparedSample(str(i), SHAPE, {"prompt_embeds": torch.ones(i + 1, 8)}) for i in range(4)
    ]
    write_prepared(tmp_path, alone, torch.ones(1, 8), 6, samples_per_shard=3)
    batch = Prepared(PreparedData(folder=tmp_path, batch_size=2), 0).batch(0, 0, 1)
    assert batch.latents is None
    assert batch.latent_shape == SHAPE
    assert batch.require("prompt").embeds.shape == (2, 6, 8)


def test_data_know_the_geometry_that_they_were_encoded_with(tmp_path: Path) -> None:
    prepared.write_shard(tmp_path, 0, [sample(0)])
    prepared.finish(tmp_path, 1, torch.ones(1, 8), 6, Geometry(spatial_stride=16))
    assert PreparedFolder(tmp_path).geometry.size_multiple == 32
    assert read_index(tmp_path / INDEX, 0)[1] == ((64, 64, 5),)
    with pytest.raises(ValueError, match=r"^data\.batch_size: 2 .* samples of 64x64 and 5 frames"):
        Prepared(PreparedData(folder=tmp_path, batch_size=2), 0)
    index = json.loads((tmp_path / INDEX).read_text())
    del index["geometry"]  # of before
    (tmp_path / INDEX).write_text(json.dumps(index))
    assert read_index(tmp_path / INDEX, 1)[1] == ((32, 32, 5),)


def test_a_shard_that_was_cut_short_counts_as_missing(tmp_path: Path) -> None:
    prepared.write_shard(tmp_path, 0, [sample(0)])
    assert prepared.has_shard(tmp_path, 0)
    assert not prepared.has_shard(tmp_path, 1)
    path = prepared.shard_path(tmp_path, 0)
    path.write_bytes(path.read_bytes()[:-1])
    assert not prepared.has_shard(tmp_path, 0)


def test_a_restart_must_agree_with_what_was_begun(tmp_path: Path) -> None:
    settings = {"sizes": [(64, 32)], "fps": 16}
    prepared.begin(tmp_path / "out", settings)
    prepared.begin(tmp_path / "out", settings)
    with pytest.raises(ValueError, match="was begun with another fps; choose another folder"):
        prepared.begin(tmp_path / "out", settings | {"fps": 8})


@pytest.mark.parametrize("name", [INDEX, "shard-00000.safetensors"])
def test_data_without_settings_are_not_written_over(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("{}")
    with pytest.raises(ValueError, match="holds other data"):
        prepared.begin(tmp_path, {})
    assert [path.name for path in tmp_path.iterdir()] == [name]
