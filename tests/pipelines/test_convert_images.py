"""Models that continue an image, from diffusers' layout to Wan's own and back."""

import shutil
from pathlib import Path
from unittest.mock import ANY

import pytest
import torch
from diffusers import WanImageToVideoPipeline, WanTransformer3DModel
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

from pipelines.__main__ import main
from pipelines.catalog.registry import Registry
from pipelines.formats.clip import open_image_encoder
from pipelines.models.loading import load_components
from tests.pipelines.conftest import build_pipeline
from tests.pipelines.test_convert import NETWORKS, assert_same_weights


@pytest.fixture(scope="session")
def image_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with `mini-i2v`, random and with CLIP, in diffusers' layout."""
    folder = tmp_path_factory.mktemp("image")
    text = build_pipeline()
    clip = CLIPVisionConfig(
        hidden_size=80,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=1,
        image_size=28,
        patch_size=14,
        hidden_act="gelu",
    )
    config = dict(text.transformer.config) | {"in_channels": 36, "out_channels": 16}
    config |= {"image_dim": 80, "added_kv_proj_dim": 32, "_use_default_values": []}
    pipeline = WanImageToVideoPipeline(
        tokenizer=text.tokenizer,
        text_encoder=text.text_encoder,
        vae=text.vae,
        scheduler=text.scheduler,
        transformer=WanTransformer3DModel.from_config(config),
        image_encoder=CLIPVisionModel(clip).half(),
        image_processor=CLIPImageProcessor(),
    )
    pipeline.save_pretrained(folder / "mini-i2v")
    command = ["convert", "mini-i2v", str(folder / "native"), "--to", "native"]
    assert main([*command, "--models", str(folder)]) == 0
    command = ["convert", "native", str(folder / "back"), "--to", "diffusers"]
    assert main([*command, "--models", str(folder)]) == 0
    return folder


def test_image_to_video_goes_to_native_and_back(image_model: Path) -> None:
    for part in (*NETWORKS, "image_encoder"):
        assert_same_weights(image_model / "mini-i2v" / part, image_model / "back" / part)
    file = image_model / "native" / "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth"
    clip = torch.load(file, weights_only=True)
    assert clip["visual.transformer.1.attn.to_qkv.weight"].shape == (240, 80)
    assert clip["visual.cls_embedding"].shape == (1, 1, 80)
    ours = WanImageToVideoPipeline.from_pretrained(image_model / "back")
    stock = WanImageToVideoPipeline.from_pretrained(image_model / "mini-i2v")
    assert ours.image_processor.to_dict() == stock.image_processor.to_dict()
    assert dict(ours.vae.config) == dict(stock.vae.config) | {"_name_or_path": ANY}


def test_a_native_image_model_loads_with_clip_and_wans_own_preprocessing(
    image_model: Path, tmp_path: Path
) -> None:
    native = load_components(image_model / "native", 512, "cpu")
    diffusers = load_components(image_model / "mini-i2v", 512, "cpu")
    assert native.image_encoder is not None
    assert diffusers.image_encoder is not None
    state = native.image_encoder.network.state_dict()
    expected = diffusers.image_encoder.network.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in state.items())
    entries = Registry([image_model]).models()
    without = Path(shutil.copytree(image_model / "native", tmp_path / "published"))
    (without / "sampler.json").unlink()
    published = Registry([tmp_path]).models()["published"].preset
    assert entries["native"].preset.image_preprocessing == "diffusers"  # as it was made
    assert published.image_preprocessing == "native"
    assert (published.sampler.num_inference_steps, published.sampler.flow_shift) == (40, 3.0)


def test_a_text_half_of_clip_is_passed_over(image_model: Path, tmp_path: Path) -> None:
    name = "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth"
    clip = torch.load(image_model / "native" / name, weights_only=True)
    clip |= {"textual.head.0.weight": torch.zeros(3), "log_scale": torch.zeros(())}
    torch.save(clip | {"visual.head": torch.zeros(80, 4)}, tmp_path / name)
    part = open_image_encoder(tmp_path / name)
    whole = open_image_encoder(image_model / "native" / name)
    assert part.shapes == whole.shapes
