"""Networks from Wan's own files: transformer, VAE, text encoder, image encoder.

Not through diffusers' `from_single_file`: that one takes configurations from the hub by two known
widths, drops the guidance embedder, runs what `from_pretrained` keeps in fp32 in bf16 where
bf16 is asked for, and opens a file whole. Names and configurations are ours
(pipelines/files/weight_names.py, weight_configs.py), networks diffusers' and transformers'.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from torch import nn
from transformers import UMT5Config, UMT5EncoderModel

from pipelines.formats.parts import open_text_encoder, open_transformer, open_vae
from pipelines.formats.weights import Weight
from pipelines.sampling.guidance_embedder import (
    DTYPE_KEY,
    is_guidance_weight,
    load_guidance_embedder,
)


def load_native_transformer(path: Path, dtype: torch.dtype, device: str) -> WanTransformer3DModel:
    """A transformer from one file or a native folder, frozen, with its guidance embedder if any."""
    part = open_transformer(path)
    guidance = {name: weight for name, weight in part.tensors.items() if is_guidance_weight(name)}
    own = {name: weight for name, weight in part.tensors.items() if name not in guidance}
    build = partial(WanTransformer3DModel.from_config, part.config)
    in_fp32 = frozenset(WanTransformer3DModel._keep_in_fp32_modules)
    transformer = build_network(build, own, dtype, path, in_fp32)
    if guidance:
        read = {name: weight.read() for name, weight in guidance.items()}
        rounded = part.metadata.get(DTYPE_KEY) == "bfloat16"
        load_guidance_embedder(transformer, read, rounded=rounded)
    return transformer.requires_grad_(False).eval().to(device)


def load_native_vae(file: Path, dtype: torch.dtype, device: str) -> AutoencoderKLWan:
    """The VAE of Wan2.1_VAE.pth, frozen."""
    part = open_vae(file)
    vae = build_network(
        partial(AutoencoderKLWan.from_config, part.config), part.tensors, dtype, file
    )
    return vae.requires_grad_(False).eval().to(device)


def load_native_text_encoder(file: Path, dtype: torch.dtype, device: str) -> UMT5EncoderModel:
    """The text encoder of models_t5_umt5-xxl-enc-bf16.pth, frozen."""
    part = open_text_encoder(file)
    tied = {"encoder.embed_tokens.weight": part.tensors["shared.weight"]}
    config = UMT5Config(**part.config)
    encoder = build_network(lambda: UMT5EncoderModel(config), part.tensors | tied, dtype, file)
    encoder.tie_weights()
    return encoder.requires_grad_(False).eval().to(device)


def build_network(
    build: Callable[[], Any],
    tensors: dict[str, Weight],
    dtype: torch.dtype,
    path: Path,
    in_fp32: frozenset[str] = frozenset(),
) -> Any:
    """The network with these weights in `dtype`, those of the modules `in_fp32` in fp32."""
    with init_empty_weights(include_buffers=False):
        network: nn.Module = build()
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    given = {name: weight.shape for name, weight in tensors.items()}
    wrong = sorted(
        name for name in expected.keys() | given.keys() if expected.get(name) != given.get(name)
    )
    if wrong:
        raise ValueError(
            f"model: the weights in {path} are not a whole Wan2.1 network ({len(wrong)} tensors do "
            f"not fit, the first is {wrong[0]}); copy or download that file again"
        )
    state = {
        name: weight.read().to(torch.float32 if in_fp32 & set(name.split(".")) else dtype)
        for name, weight in tensors.items()
    }
    network.load_state_dict(state, assign=True)
    return network
