"""From a model folder to components in memory: transformer, VAE, text encoder, tokenizer.

`load_components` is the one place that knows layouts. Weights are safetensors; a pickle is never
opened.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from diffusers.pipelines.wan.pipeline_wan import prompt_clean
from diffusers.utils import logging as diffusers_logging
from safetensors import safe_open
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase, UMT5EncoderModel
from transformers import logging as transformers_logging

from pipelines.files import Header, fingerprint, weight_files, what_is_missing
from pipelines.guidance import is_guidance_weight, load_guidance_embedder


@dataclass
class PromptEncoder:
    """What turns prompts into embeddings."""

    text_encoder: UMT5EncoderModel
    tokenizer: PreTrainedTokenizerBase
    text_length: int
    text_fingerprint: str  # equal where two models encode prompts alike

    @torch.no_grad()
    def encode_prompt(self, prompts: list[str]) -> Tensor:
        """Prompts -> [B, text_length, D]; rows past the text are zero and attended to unmasked.

        Both belong to the checkpoint: Wan was trained so.
        """
        tokens = self.tokenizer(
            [prompt_clean(prompt) for prompt in prompts],
            padding="max_length",
            max_length=self.text_length,
            truncation=True,
            return_tensors="pt",
        ).to(self.text_encoder.device)
        mask = tokens.attention_mask
        embeds = self.text_encoder(tokens.input_ids, mask).last_hidden_state
        return embeds.masked_fill(mask[..., None] == 0, 0)

    def prompt_notes(self, prompt: str) -> tuple[str, ...]:
        """A sentence where the prompt is longer than the model reads."""
        num_tokens = len(self.tokenizer(prompt_clean(prompt)).input_ids)
        if num_tokens <= self.text_length:
            return ()
        return (
            f"the prompt has {num_tokens} tokens, and the model reads the first {self.text_length}",
        )


@dataclass
class VideoCodec:
    """What turns video into latents and back."""

    vae: AutoencoderKLWan  # fp32, as in Wan's own inference

    @property
    def device(self) -> torch.device:
        """Where the VAE lies."""
        return next(self.vae.parameters()).device

    @property
    def num_latent_channels(self) -> int:
        """Channels of the latents, 16 for Wan2.1."""
        return int(self.vae.config.z_dim)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Normalised latents [B, C, F, H, W] -> video [B, F, 3, 8H, 8W] fp32 in [0, 1]."""
        mean, std = self._latent_statistics()
        video = self.vae.decode(latents.float() * std + mean, return_dict=False)[0]
        return (video / 2 + 0.5).clamp(0, 1).transpose(1, 2)

    @torch.no_grad()
    def encode(self, video: Tensor) -> Tensor:
        """Video [B, F, 3, H, W] in [0, 1] -> normalised latents [B, C, (F-1)/4+1, H/8, W/8] fp32.

        The posterior's mean, never a sample, as in Wan's own preprocessing.
        """
        mean, std = self._latent_statistics()
        pixels = video.transpose(1, 2).to(self.device, torch.float32) * 2 - 1
        return (self.vae.encode(pixels).latent_dist.mode() - mean) / std

    def _latent_statistics(self) -> tuple[Tensor, Tensor]:
        shape = (1, -1, 1, 1, 1)
        mean = torch.tensor(self.vae.config.latents_mean, device=self.device).view(shape)
        std = torch.tensor(self.vae.config.latents_std, device=self.device).view(shape)
        return mean, std


@dataclass
class Components(PromptEncoder, VideoCodec):
    """One model in memory, all on one device. Transformer and text encoder may be bf16."""

    transformer: WanTransformer3DModel


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
) -> Components:
    """Loads a diffusers folder of text-to-video Wan; `dtype` is for transformer and text encoder.

    `transformer` is the folder of a student's own, in place of the one in `folder`. ValueError in
    one sentence for a missing, damaged or foreign file.
    """
    dtype = dtype or best_dtype(device)
    prompts = load_prompt_encoder(folder, text_length, device, dtype)
    return Components(
        **vars(prompts),
        **vars(load_video_codec(folder, device)),
        transformer=load_transformer(transformer or folder / "transformer", dtype, device),
    )


def load_prompt_encoder(
    folder: Path, text_length: int, device: str, dtype: torch.dtype | None = None
) -> PromptEncoder:
    """Tokenizer and text encoder alone of a folder that `load_components` reads."""
    _refuse_incomplete(folder)
    dtype = dtype or best_dtype(device)
    return PromptEncoder(
        text_encoder=_load(UMT5EncoderModel, folder / "text_encoder", dtype, device),
        tokenizer=AutoTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True),
        text_length=text_length,
        text_fingerprint=fingerprint(folder / "text_encoder") + fingerprint(folder / "tokenizer"),
    )


def load_video_codec(folder: Path, device: str) -> VideoCodec:
    """The VAE alone of a folder that `load_components` reads."""
    _refuse_incomplete(folder)
    return VideoCodec(_load(AutoencoderKLWan, folder / "vae", torch.float32, device))


def _refuse_incomplete(folder: Path) -> None:
    problem = what_is_missing(folder)
    if problem:
        raise ValueError(f"model: {problem}")


def load_transformer(folder: Path, dtype: torch.dtype, device: str) -> WanTransformer3DModel:
    """Loads a `transformer/` folder, frozen, with the guidance embedder where its files have one.

    ValueError in one sentence for a missing, damaged or foreign file.
    """
    transformer: WanTransformer3DModel = _load(WanTransformer3DModel, folder, dtype, device)
    guidance: dict[str, Tensor] = {}
    for path in weight_files(folder):
        with safe_open(path, "pt") as file:
            names = filter(is_guidance_weight, file.keys())
            guidance |= {name: file.get_tensor(name) for name in names}
    if guidance:
        load_guidance_embedder(transformer, guidance)
        transformer.requires_grad_(False).eval()
    return transformer


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
        names = sorted(key for key in report[f"{what}_keys"] if not is_guidance_weight(key))
        if names:
            raise ValueError(
                f"model: the weights in {part} do not fit its config.json ({len(names)} tensors "
                f"are {what}, the first is {names[0]}); copy or download that folder again"
            )
    return loaded.requires_grad_(False).eval().to(device)
