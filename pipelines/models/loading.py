"""From a model folder to components in memory: transformer, VAE, text encoder, tokenizer.

In diffusers' layout weights are safetensors, and a pickle is never opened; Wan's own layout is read
by pipelines/formats/build.py.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from diffusers.utils import logging as diffusers_logging
from safetensors import safe_open
from torch import Tensor
from transformers import AutoTokenizer, CLIPImageProcessor, CLIPVisionModel, UMT5EncoderModel
from transformers import logging as transformers_logging

from pipelines.files.diffusers_layout import weight_files
from pipelines.files.disk import fingerprint
from pipelines.files.layouts import (
    image_encoder_path,
    is_diffusers_part,
    text_encoder_path,
    tokenizer_path,
    transformer_path,
    vae_path,
    what_is_missing,
)
from pipelines.files.tensors import Header
from pipelines.formats.build import (
    load_native_text_encoder,
    load_native_transformer,
    load_native_vae,
)
from pipelines.formats.clip import load_native_image_encoder
from pipelines.geometry import WAN21, Geometry
from pipelines.models.codecs import ImageEncoder, PromptEncoder, VideoCodec
from pipelines.sampling.guidance_embedder import (
    DTYPE_KEY,
    is_guidance_weight,
    load_guidance_embedder,
)

GATE = ".to_gate_compress."  # FastWan's, of the coarse half of its sparse attention
GATES_UNREAD = (
    "this checkpoint was trained with sparse attention (VSA); it runs with full attention and "
    "without its gates"
)


@dataclass
class Components(PromptEncoder, VideoCodec):
    """One model in memory, all on one device. Transformer and text encoder may be bf16."""

    transformer: WanTransformer3DModel
    image_encoder: ImageEncoder | None = None
    notes: tuple[str, ...] = ()  # what a user should know of these weights


def pick_device(name: str | None = None) -> str:
    """The device of that name, or the best there is. ValueError where this machine has no such."""
    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, index = name.partition(":")
    here = {"cpu": 1, "cuda": torch.cuda.device_count()}
    if not (index or "0").isdecimal() or int(index or 0) >= here.get(kind, 0):
        raise ValueError(f"device is {name!r} but this machine has no such; use {pick_device()}")
    return name


def best_dtype(device: str) -> torch.dtype:
    """bf16 where the hardware is made for it; fp32 on a CPU."""
    return torch.bfloat16 if device.startswith("cuda") else torch.float32


def load_components(
    folder: Path,
    text_length: int,
    device: str,
    dtype: torch.dtype | None = None,
    transformer: Path | None = None,
    geometry: Geometry = WAN21,
) -> Components:
    """Loads a folder of Wan; `dtype` is for transformer and text encoder.

    `transformer` is a folder or file of a model's own, in place of the one in `folder`; `geometry`
    is what the model's preset says.
    ValueError in one sentence for a missing, damaged or foreign file.
    """
    dtype = dtype or best_dtype(device)
    prompts = load_prompt_encoder(folder, text_length, device, dtype)
    path = transformer or transformer_path(folder)
    network = load_transformer(path, dtype, device)
    reads_embeds = network.config.image_dim is not None
    return Components(
        **vars(prompts),
        **vars(load_video_codec(folder, device, geometry)),
        transformer=network,
        image_encoder=load_image_encoder(folder, device) if reads_embeds else None,
        notes=(GATES_UNREAD,) if is_diffusers_part(path) and _has_gates(path) else (),
    )


def load_prompt_encoder(
    folder: Path, text_length: int, device: str, dtype: torch.dtype | None = None
) -> PromptEncoder:
    """Tokenizer and text encoder alone of a folder that `load_components` reads."""
    _refuse_incomplete(folder)
    dtype = dtype or best_dtype(device)
    part, tokenizer = text_encoder_path(folder), tokenizer_path(folder)
    if part.is_dir():
        text_encoder = _load(UMT5EncoderModel, part, dtype, device)
    else:
        text_encoder = load_native_text_encoder(part, dtype, device)
    return PromptEncoder(
        text_encoder=text_encoder,
        tokenizer=AutoTokenizer.from_pretrained(tokenizer, local_files_only=True),
        text_length=text_length,
        text_fingerprint=fingerprint(part) + fingerprint(tokenizer),
    )


def load_video_codec(folder: Path, device: str, geometry: Geometry = WAN21) -> VideoCodec:
    """The VAE alone of a folder that `load_components` reads. ValueError for another geometry."""
    _refuse_incomplete(folder)
    part = vae_path(folder)
    if part.is_dir():
        vae = _load(AutoencoderKLWan, part, torch.float32, device)
    else:
        vae = load_native_vae(part, torch.float32, device)
    strides = {
        "spatial_stride": vae.config.scale_factor_spatial,
        "temporal_stride": vae.config.scale_factor_temporal,
    }
    own = geometry.model_copy(update={**strides, "num_channels": vae.config.z_dim})
    if own != geometry:
        raise ValueError(
            f"model: the VAE in {part} has the geometry {own}, and its settings say {geometry}; "
            "correct geometry in its preset or sampler.json"
        )
    return VideoCodec(vae, geometry=geometry)


def load_image_encoder(folder: Path, device: str) -> ImageEncoder:
    """CLIP alone of a folder that `load_components` reads, fp32. ValueError where it has none."""
    native = image_encoder_path(folder)
    if native.is_file():
        return ImageEncoder(load_native_image_encoder(native, device), CLIPImageProcessor())
    for part in ("image_encoder", "image_processor"):
        if not (folder / part).is_dir():
            raise ValueError(f"model: {folder} has no {part}/ folder; copy or download it again")
    return ImageEncoder(
        _load(CLIPVisionModel, folder / "image_encoder", torch.float32, device),
        CLIPImageProcessor.from_pretrained(folder / "image_processor", local_files_only=True),
    )


def _refuse_incomplete(folder: Path) -> None:
    problem = what_is_missing(folder)
    if problem:
        raise ValueError(f"model: {problem}")


def load_transformer(path: Path, dtype: torch.dtype, device: str) -> WanTransformer3DModel:
    """Loads a `transformer/` folder, a native folder or one file: frozen, with the guidance
    embedder where its files have one.

    ValueError in one sentence for a missing, damaged or foreign file.
    """
    if not is_diffusers_part(path):
        return load_native_transformer(path, dtype, device)
    transformer: WanTransformer3DModel = _load(WanTransformer3DModel, path, dtype, device)
    guidance: dict[str, Tensor] = {}
    metadata: dict[str, str] = {}
    for file_path in weight_files(path):
        with safe_open(file_path, "pt") as file:
            names = filter(is_guidance_weight, file.keys())
            guidance |= {name: file.get_tensor(name) for name in names}
            metadata |= file.metadata() or {}
    if guidance:
        rounded = metadata.get(DTYPE_KEY) == "bfloat16"
        load_guidance_embedder(transformer, guidance, rounded=rounded)
        transformer.requires_grad_(False).eval()
    return transformer


def _is_spare(name: str) -> bool:
    """Whether a network may do without that weight, or gets it by another way."""
    return is_guidance_weight(name) or GATE in name


def _has_gates(folder: Path) -> bool:
    return any(GATE in name for file in weight_files(folder) for name in Header(file).shapes)


def _load(network: Any, part: Path, dtype: torch.dtype, device: str) -> Any:
    """One network, frozen and in evaluation mode; its weights must fit its config.json."""
    for library in (diffusers_logging, transformers_logging):
        library.disable_progress_bar()
        library.set_verbosity_error()  # what they warn about is said below, in one sentence
    for file in weight_files(part):
        if not file.is_file():
            raise ValueError(f"model: {file} is missing; copy or download that folder again")
        Header(file)  # names a damaged file, where the libraries only say "header too large"
    try:
        loaded, report = network.from_pretrained(
            part, dtype=dtype, use_safetensors=True, local_files_only=True, output_loading_info=True
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"model: {part} cannot be loaded ({str(error).splitlines()[0]}); "
            "copy or download that folder again"
        ) from error
    for what in ("missing", "unexpected"):
        names = sorted(key for key in report[f"{what}_keys"] if not _is_spare(key))
        if names:
            raise ValueError(
                f"model: the weights in {part} do not fit its config.json ({len(names)} tensors "
                f"are {what}, the first is {names[0]}); copy or download that folder again"
            )
    return loaded.requires_grad_(False).eval().to(device)
