import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipelines.catalog.registry import Registry
from pipelines.model_cache import ModelCache
from pipelines.models.loading import Components, load_components
from tests.pipelines.conftest import TEXT_LENGTH

SHARDS = ("diffusion_pytorch_model-1.safetensors", "diffusion_pytorch_model-2.safetensors")


@pytest.fixture
def components(registry: Registry, models: ModelCache) -> Components:
    return models.components(registry.recipe("mini", "a"), registry.entry("mini"))


@pytest.fixture
def copy(models_dir: Path, tmp_path: Path) -> Path:
    """A model folder that a test may damage."""
    return Path(shutil.copytree(models_dir / "mini", tmp_path / "mini"))


def test_a_prompt_is_padded_with_zero_rows_after_the_encoder(components: Components) -> None:
    embeds = components.encode_prompt(["a red circle", ""])
    assert embeds.shape == (2, TEXT_LENGTH, 16)
    used = embeds.abs().sum(-1) > 0
    assert used.sum(1).tolist() == [4, 1]  # three words and the end; only the end


def test_encoding_in_a_batch_equals_encoding_alone(components: Components) -> None:
    prompts = ["a red circle", "blue"]
    together = components.encode_prompt(prompts)
    alone = torch.cat([components.encode_prompt([prompt]) for prompt in prompts])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=0)


def test_latents_are_normalised_with_the_models_own_mean_and_std(components: Components) -> None:
    video = torch.rand(1, 5, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    latents = components.encode(video)
    assert latents.shape == (1, 16, 2, 4, 6)
    raw = components.vae.encode(video.transpose(1, 2) * 2 - 1).latent_dist.mode()
    torch.testing.assert_close(latents, (raw - 0.1) / 0.5)
    decoded = components.decode(latents)
    assert decoded.shape == video.shape
    assert decoded.dtype == torch.float32
    assert 0 <= decoded.min() <= decoded.max() <= 1
    expected = components.vae.decode(raw).sample.transpose(1, 2) / 2 + 0.5
    torch.testing.assert_close(decoded, expected.clamp(0, 1), atol=1e-5, rtol=0)


def test_networks_come_frozen_and_the_vae_stays_in_fp32(models_dir: Path) -> None:
    loaded = load_components(models_dir / "mini", TEXT_LENGTH, "cpu", torch.bfloat16)
    assert loaded.transformer.patch_embedding.weight.dtype == torch.bfloat16
    assert loaded.vae.dtype == torch.float32
    for network in (loaded.transformer, loaded.vae, loaded.text_encoder):
        assert not network.training
        assert not any(parameter.requires_grad for parameter in network.parameters())


def shard(folder: Path) -> None:
    """Splits the transformer's weights over two files with an index, as large models come."""
    part = folder / "transformer"
    whole = part / "diffusion_pytorch_model.safetensors"
    tensors = load_file(whole)
    names = sorted(tensors)
    halves = (names[::2], names[1::2])
    weight_map = {}
    for file, half in zip(SHARDS, halves, strict=True):
        save_file({name: tensors[name] for name in half}, part / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(half, file)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (part / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    whole.unlink()


def test_sharded_weights_load_as_the_whole_file_does(copy: Path, models_dir: Path) -> None:
    shard(copy)
    ours = load_components(copy, TEXT_LENGTH, "cpu").transformer.state_dict()
    whole = load_components(models_dir / "mini", TEXT_LENGTH, "cpu").transformer.state_dict()
    assert all(torch.equal(tensor, whole[name]) for name, tensor in ours.items())


def lose_a_shard(folder: Path) -> None:
    shard(folder)
    (folder / "transformer" / SHARDS[1]).unlink()


def truncate(folder: Path) -> None:
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])


def scramble_the_header(folder: Path) -> None:
    file = folder / "text_encoder" / "model.safetensors"
    file.write_bytes(b"\xff" * 64 + file.read_bytes()[64:])


def swap_in_a_wrong_file(folder: Path) -> None:
    vae = folder / "vae" / "diffusion_pytorch_model.safetensors"
    shutil.copy(vae, folder / "transformer" / "diffusion_pytorch_model.safetensors")


def lose_a_tensor(folder: Path) -> None:
    file = folder / "text_encoder" / "model.safetensors"
    tensors = load_file(file)
    del tensors["encoder.final_layer_norm.weight"]
    save_file(tensors, file, metadata={"format": "pt"})


def change_a_shape(folder: Path) -> None:
    file = folder / "text_encoder" / "model.safetensors"
    tensors = load_file(file)
    tensors["encoder.final_layer_norm.weight"] = torch.zeros(3)
    save_file(tensors, file, metadata={"format": "pt"})


def keep_only_a_pickle(folder: Path) -> None:
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(file), file.with_suffix(".bin"))
    file.unlink()


def lose_the_tokenizer(folder: Path) -> None:
    shutil.rmtree(folder / "tokenizer")


def break_the_index(folder: Path) -> None:
    (folder / "model_index.json").write_text("{")


def become_another_pipeline(folder: Path) -> None:
    (folder / "model_index.json").write_text('{"_class_name": "WanVACEPipeline"}')


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lose_a_shard, f"{SHARDS[1]} is missing"),
        (truncate, "vae.* are damaged .* copy or download the file again"),
        (scramble_the_header, "text_encoder.* are damaged"),
        (swap_in_a_wrong_file, "transformer .*(do not fit|cannot be loaded)"),
        (
            lose_a_tensor,
            r"do not fit its config.json \(1 tensors are missing, the first is encoder",
        ),
        (change_a_shape, "text_encoder cannot be loaded"),
        (
            keep_only_a_pickle,
            "transformer is a pickle, which is not opened; save it as safetensors",
        ),
        (lose_the_tokenizer, "has no tokenizer/ folder"),
        (break_the_index, "model_index.json is not valid JSON"),
        (become_another_pipeline, "holds a WanVACEPipeline, but only"),
    ],
)
def test_a_damaged_or_foreign_folder_is_refused_in_one_sentence(
    damage: Callable[[Path], None], message: str, copy: Path
) -> None:
    damage(copy)
    with pytest.raises(ValueError, match=message) as caught:
        load_components(copy, TEXT_LENGTH, "cpu")
    assert "\n" not in str(caught.value)
