"""Training on several sizes: one bucket a step, the same for every stream."""

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pipelines.catalog.registry import Registry
from tests.trainers.data import write_prepared
from trainers.data.batches import Prepared, build_data
from trainers.data.order import BucketOrder
from trainers.data.prepared import INDEX, VERSION, PreparedSample
from trainers.estimate.estimate import _largest_batch
from trainers.networks.models import Codecs
from trainers.registry import build_config
from trainers.settings.data import PreparedData
from trainers.settings.prepare import PrepareSettings

SMALL, LARGE = (16, 2, 4, 4), (16, 3, 4, 6)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four small and eight large samples, mixed; the caption says which."""
    folder = tmp_path_factory.mktemp("mixed")
    shapes = [LARGE, SMALL, LARGE] * 4
    samples = [
        PreparedSample(
            f"{'small' if shape == SMALL else 'large'} {i}",
            shape,
            {"latents": torch.randn(shape), "prompt_embeds": torch.randn(3, 12)},
        )
        for i, shape in enumerate(shapes)
    ]
    write_prepared(folder, samples, torch.randn(1, 12), text_length=8)
    return folder


def prepared(folder: Path, batch_size: int = 2) -> Prepared:
    return Prepared(PreparedData(folder=folder, batch_size=batch_size), seed=0)


def test_a_batch_has_one_shape_and_all_streams_of_a_step_have_the_same(mixed: Path) -> None:
    source = prepared(mixed)
    shapes = set()
    for step in range(12):
        batches = [source.batch(step, stream, 2) for stream in range(2)]
        (shape,) = {batch.latent_shape for batch in batches}
        shapes.add(shape)
        size = "small" if shape == SMALL else "large"
        prompts = [prompt for batch in batches for prompt in batch.prompts]
        assert all(prompt.startswith(size) for prompt in prompts)
        assert len(set(prompts)) == 4
    assert shapes == {SMALL, LARGE}


def test_a_bucket_has_turns_in_proportion_and_its_samples_come_once_an_epoch(mixed: Path) -> None:
    source = prepared(mixed)
    prompts = [p for step in range(6) for p in source.batch(step, 0, 1).prompts]
    assert Counter(prompts) == Counter(source.files.captions)
    again = prepared(mixed)
    assert source.batch(4, 0, 1).prompts == again.batch(4, 0, 1).prompts


def test_without_buckets_the_order_is_that_of_one_permutation() -> None:
    order = BucketOrder([10], seed=3)
    assert sorted(order.chosen(0, 0, 1, 10)) == list(range(10))
    assert order.chosen(1, 0, 1, 5) == order.chosen(0, 1, 2, 5)


def test_an_index_of_version_1_is_read_and_grouped_all_the_same(
    mixed: Path, tmp_path: Path
) -> None:
    for path in mixed.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["version"] == VERSION
    del index["shapes"], index["tensors"]
    (tmp_path / INDEX).write_text(json.dumps(index | {"version": 1}))
    assert prepared(tmp_path).buckets == prepared(mixed).buckets
    (tmp_path / INDEX).write_text(json.dumps(index | {"version": VERSION + 1}))
    with pytest.raises(ValueError, match=r"^data\.folder: .* newer version"):
        prepared(tmp_path)


def test_a_bucket_that_cannot_fill_a_batch_is_refused_by_its_size(mixed: Path) -> None:
    with pytest.raises(ValueError, match=r"^data\.batch_size: 5 .* 4 samples of 32x32 and 5 fr"):
        prepared(mixed, batch_size=5)


# ---------------------------------------------------------------- prompts


@pytest.fixture
def prompt_tree(whole_model: Path, tmp_path: Path):
    """Settings of the data -> the tree of a data-free run."""
    (tmp_path / "prompts.txt").write_text("a red circle\na blue square\na red square\n")

    def tree(**data: Any) -> dict[str, Any]:
        source = {"source": "prompts", "file": str(tmp_path / "prompts.txt"), "batch_size": 2}
        model = {"name": "mini", "method": "dmd2", "model": str(whole_model)}
        return model | {"data": source | data, "num_steps": 2, "algorithm": {}}

    return tree


BUCKETS = [
    {"width": 32, "height": 16, "num_frames": 5},
    {"width": 48, "height": 32, "num_frames": 1, "batch_size": 3},
]


def test_prompts_come_in_the_size_of_their_bucket_with_its_batch_size(prompt_tree) -> None:
    config = build_config(prompt_tree(buckets=BUCKETS))
    codecs = Codecs(Registry().entry(config.model), CPU)
    source = build_data(config, codecs)
    seen = {(batch := source.batch(step, 0, 1)).latent_shape: len(batch.prompts) for step in (0, 1)}
    assert seen == {(16, 2, 2, 4): 2, (16, 1, 4, 6): 3}
    assert "video" not in vars(codecs)  # the VAE is not loaded for prompts
    assert source.batch(0, 0, 1).require("prompt").embeds.shape[1:] == (12, 16)


def test_without_a_size_prompts_come_in_the_models_own(prompt_tree) -> None:
    config = build_config(prompt_tree())
    batch = build_data(config, Codecs(Registry().entry(config.model), CPU)).batch(0, 0, 1)
    assert batch.latent_shape == (16, 2, 4, 4)


def test_prompts_and_their_estimate_take_the_geometry_of_the_model(
    prompt_tree, whole_model: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(whole_model, tmp_path / "models" / "coarse")
    spec = json.loads((folder / "sampler.json").read_text())
    spec |= {"geometry": {"spatial_stride": 16, "num_channels": 48}}
    (folder / "sampler.json").write_text(json.dumps(spec))
    config = build_config(prompt_tree(width=64) | {"model": str(folder)})
    entry = Registry().entry(str(folder))
    codecs = Codecs(entry, CPU)
    assert build_data(config, codecs).batch(0, 0, 1).latent_shape == (48, 2, 2, 4)
    assert _largest_batch(config, entry.preset) == ((2, 2, 4), 2)
    config = build_config(prompt_tree(width=80) | {"model": str(folder)})
    with pytest.raises(ValueError, match=r"^data: width is 80 but must be a multiple of 32"):
        build_data(config, codecs)
    settings = PrepareSettings(model=str(folder), size=("64x48",))
    with pytest.raises(ValueError, match=r"^size: height is 48 but must be a multiple of 32"):
        settings.complete("videos", entry.preset)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"width": 40}, "data.prompts.width: "),
        ({"num_frames": 6}, "data.prompts.num_frames: is 6 but must be 4n+1; try 5"),
        ({"buckets": [BUCKETS[0] | {"height": 40}]}, "data.prompts.buckets.0.height: "),
        ({"buckets": [BUCKETS[0] | {"num_frames": 7}]}, "data.prompts.buckets.0.num_frames: is 7"),
        ({"buckets": BUCKETS, "width": 32}, "data.prompts: width is not read beside buckets"),
    ],
)
def test_a_size_that_cannot_be_trained_names_its_field(
    data: dict[str, Any], message: str, prompt_tree
) -> None:
    with pytest.raises(ValueError) as caught:
        build_config(prompt_tree(**data))
    assert str(caught.value).startswith(message)


def test_prepared_samples_are_written_as_they_are(mixed: Path) -> None:
    shard = load_file(mixed / "shard-00000.safetensors")
    assert shard["0.latents"].shape == LARGE
    assert shard["1.latents"].shape == SMALL
