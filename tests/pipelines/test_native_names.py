"""Our tables of names against the networks, and against diffusers where it has the same."""

import json
from pathlib import Path
from unittest.mock import ANY

import pytest
import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from diffusers.loaders.single_file_utils import (
    convert_wan_transformer_to_diffusers,
    convert_wan_vae_to_diffusers,
)
from safetensors.torch import save_file
from transformers import UMT5Config, UMT5EncoderModel

from pipelines.files.weight_configs import text_encoder_config, transformer_config, vae_config
from pipelines.files.weight_names import TEXT_ENCODER, TRANSFORMER, NameTable, vae_size, vae_table
from pipelines.models.loading import load_transformer
from tests.pipelines.official_wan import NUM_HEADS, native_shapes, random_weights

T2V = {"num_attention_heads": 12, "num_layers": 30, "ffn_dim": 8960}
I2V = {"in_channels": 36, "image_dim": 1280, "added_kv_proj_dim": 5120}


def shapes_of(network: type, **config: object) -> dict[str, tuple[int, ...]]:
    with init_empty_weights():
        state = network(**config).state_dict()
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def assert_one_to_one(table: NameTable, names: list[str]) -> dict[str, str]:
    """The native names of all these diffusers names."""
    native = {name: table.to_native(name) for name in names}
    assert None not in native.values()
    assert len(set(native.values())) == len(names)
    assert all(table.to_diffusers(theirs or "") == name for name, theirs in native.items())
    return {theirs or "": name for name, theirs in native.items()}


@pytest.mark.parametrize("config", [T2V, I2V], ids=["t2v-1.3b", "i2v-14b"])
def test_every_weight_of_a_transformer_has_diffusers_own_name(config: dict[str, int]) -> None:
    shapes = shapes_of(WanTransformer3DModel, **config)
    native = assert_one_to_one(TRANSFORMER, list(shapes))
    stock = convert_wan_transformer_to_diffusers({name: name for name in native})
    assert {theirs: name for name, theirs in stock.items()} == native
    inferred = transformer_config(shapes)
    assert {key: inferred[key] for key in config} == config
    assert shapes_of(WanTransformer3DModel, **inferred) == shapes


def test_the_small_official_network_has_the_same_names() -> None:
    for image in (False, True):
        names = native_shapes(image, guidance=True)
        assert None not in {TRANSFORMER.to_diffusers(name) for name in names}


def test_every_weight_of_wans_vae_has_diffusers_own_name() -> None:
    shapes = shapes_of(AutoencoderKLWan)
    native = assert_one_to_one(vae_table(*vae_size(shapes)), list(shapes))
    assert convert_wan_vae_to_diffusers({name: name for name in native}) == {
        theirs: name for name, theirs in native.items()
    }
    with init_empty_weights():
        expected, inferred = AutoencoderKLWan(), AutoencoderKLWan.from_config(vae_config(shapes))
    assert dict(inferred.config) == dict(expected.config) | {"_use_default_values": ANY}


def test_a_vae_of_another_depth_needs_our_table() -> None:
    """diffusers' own numbers the decoder's blocks as if each stage had two residual blocks."""
    config = {"base_dim": 8, "num_res_blocks": 1, "dim_mult": [1, 2, 4]}
    config |= {"temperal_downsample": [True, True]}
    shapes = shapes_of(AutoencoderKLWan, **config)
    native = assert_one_to_one(vae_table(*vae_size(shapes)), list(shapes))
    stock = convert_wan_vae_to_diffusers({name: name for name in native})
    assert set(stock) != set(shapes)
    inferred = vae_config(shapes)
    assert {key: inferred[key] for key in config} == config


def test_every_weight_of_the_text_encoder_is_named() -> None:
    config = {"vocab_size": 9, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2}
    config |= {"num_heads": 2}
    with init_empty_weights():
        state = UMT5EncoderModel(UMT5Config(**config)).state_dict()
    names = [name for name in state if name != "encoder.embed_tokens.weight"]  # tied to `shared`
    assert_one_to_one(TEXT_ENCODER, names)
    inferred = text_encoder_config({name: tuple(state[name].shape) for name in names})
    assert {key: inferred[key] for key in config} == config


def test_diffusers_single_file_loader_forgets_the_guidance_embedder_and_the_fp32_modules(
    tmp_path: Path,
) -> None:
    """Why single files come through our own loader."""
    path = tmp_path / "student.safetensors"
    config = {"attention_head_dim": 16, "num_attention_heads": NUM_HEADS}
    weights = random_weights(guidance=True)
    save_file(weights, path, metadata={"config": json.dumps(config)})
    ours = load_transformer(path, torch.bfloat16, "cpu")
    shapes = {TRANSFORMER.to_diffusers(n) or "": tuple(t.shape) for n, t in weights.items()}
    with init_empty_weights():
        WanTransformer3DModel(**transformer_config(shapes, config)).save_config(tmp_path)
    stock = WanTransformer3DModel.from_single_file(
        str(path), config=str(tmp_path), dtype=torch.bfloat16
    )
    assert not any("guidance" in name for name in stock.state_dict())
    assert stock.condition_embedder.time_embedder.linear_1.weight.dtype == torch.bfloat16
    embedder = ours.condition_embedder.time_embedder
    assert embedder.linear_1.weight.dtype == torch.float32
    assert set(embedder.guidance_embedder) == {"own"}
