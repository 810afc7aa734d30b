"""A random Wan of a few hundred kilobytes in the diffusers layout, and LoRA files for it."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from safetensors.torch import save_file
from tokenizers import Tokenizer, pre_tokenizers, processors
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from pipelines.catalog.registry import Registry
from pipelines.model_cache import ModelCache

TEXT_LENGTH = 12
WORDS = [
    "<pad>",
    "</s>",
    "<unk>",
    "a",
    "red",
    "blue",
    "circle",
    "square",
    "moving",
    "left",
    "&",
    "black",
]
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")


def build_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: index for index, word in enumerate(WORDS)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        "$A </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def build_pipeline() -> WanPipeline:
    torch.manual_seed(0)
    text = UMT5Config(vocab_size=len(WORDS), d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    return WanPipeline(
        tokenizer=build_tokenizer(),
        text_encoder=UMT5EncoderModel(text).eval(),
        vae=AutoencoderKLWan(
            base_dim=8,
            z_dim=16,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
            temperal_downsample=[False, True, True],
            latents_mean=[0.1] * 16,
            latents_std=[0.5] * 16,
        ),
        transformer=WanTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=16,
            text_dim=16,
            freq_dim=32,
            ffn_dim=48,
            num_layers=2,
        ),
        scheduler=UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
    )


@pytest.fixture(scope="session")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with one model, `mini`. Read only: copy it before changing it."""
    folder = tmp_path_factory.mktemp("models")
    build_pipeline().save_pretrained(folder / "mini")
    sampler = {"num_inference_steps": 3, "flow_shift": 3.0, "guidance_scale": 5.0}
    spec = {"sampler": sampler, "text_length": TEXT_LENGTH, "num_frames": 5, "fps": 8}
    (folder / "mini" / "sampler.json").write_text(json.dumps(spec | {"width": 32, "height": 32}))
    return folder


@pytest.fixture(scope="session")
def registry(models_dir: Path) -> Registry:
    return Registry([models_dir])


@pytest.fixture(scope="session")
def models(registry: Registry) -> ModelCache:
    return ModelCache(registry, "cpu")


def lora_tensors(seed: int, rank: int = 4, dim: int = 32) -> dict[str, Tensor]:
    """A LoRA for the self-attention of `mini`, by PEFT's names: LAYER.lora_A.weight."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for block in range(2):
        for layer in ATTENTION:
            name = f"blocks.{block}.attn1.{layer}"
            tensors[f"{name}.lora_A.weight"] = torch.randn(rank, dim, generator=generator) / 4
            tensors[f"{name}.lora_B.weight"] = torch.randn(dim, rank, generator=generator) / 4
    return tensors


def guidance_tensors(seed: int) -> dict[str, Tensor]:
    """A guidance embedder for `mini`, by the names that files have."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"linear_1.weight": (32, 32), "linear_2.weight": (32, 32)}
    shapes |= {"linear_1.bias": (32,), "linear_2.bias": (32,)}
    prefix = "condition_embedder.time_embedder.guidance_embedder"
    return {
        f"{prefix}.{name}": torch.randn(shape, generator=generator) / 4
        for name, shape in shapes.items()
    }


class Payload:
    """What a hostile pickle holds: unpickled, it creates the file `marker`."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.marker), "w")


def write_preview_decoder(path: Path, num_channels: int = 16) -> Path:
    """Random weights in the layout of taew2_1: half precision, an encoder as well."""
    generator = torch.Generator().manual_seed(0)

    def conv(name: str, before: int, after: int, size: int = 3, bias: bool = True) -> None:
        weight = torch.randn(after, before, size, size, generator=generator)
        tensors[f"{name}.weight"] = (weight / (before * size * size) ** 0.5).half()
        if bias:
            tensors[f"{name}.bias"] = torch.randn(after, generator=generator).half() / 10

    tensors: dict[str, Tensor] = {}
    conv("encoder.0", 3, 64)
    conv("decoder.1", num_channels, 256)
    stages = ((256, 128, 1, (3, 4, 5)), (128, 64, 2, (9, 10, 11)), (64, 64, 2, (15, 16, 17)))
    for width, after, growth, blocks in stages:
        for block in blocks:
            conv(f"decoder.{block}.conv.0", 2 * width, width)
            conv(f"decoder.{block}.conv.2", width, width)
            conv(f"decoder.{block}.conv.4", width, width)
        conv(f"decoder.{blocks[-1] + 2}.conv", width, growth * width, size=1, bias=False)
        conv(f"decoder.{blocks[-1] + 3}", width, after, bias=False)
    conv("decoder.22", 64, 3)
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path)
    return path


@pytest.fixture
def lora_file(tmp_path: Path) -> Path:
    """A LoRA without a stored alpha."""
    path = tmp_path / "style.safetensors"
    save_file({f"transformer.{name}": t for name, t in lora_tensors(1).items()}, path)
    return path


@pytest.fixture
def transformer(models_dir: Path) -> WanTransformer3DModel:
    loaded = WanTransformer3DModel.from_pretrained(models_dir / "mini" / "transformer")
    return loaded.requires_grad_(False)


@torch.no_grad()
def velocity(transformer: WanTransformer3DModel) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    (output,) = transformer(
        hidden_states=torch.randn(1, 16, 2, 4, 4, generator=generator),
        timestep=torch.tensor([700.0]),
        encoder_hidden_states=torch.randn(1, 12, 16, generator=generator),
        return_dict=False,
    )
    return output
