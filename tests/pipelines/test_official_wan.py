"""Checkpoints in Wan's own names give the velocity of Wan's own network."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import save_file
from torch import Tensor, nn

from pipelines.models.loading import load_transformer
from pipelines.sampling.denoiser import Denoiser
from pipelines.sampling.guidance_embedder import guidance_input, time_embedding
from pipelines.sampling.prompt import Prompt
from tests.pipelines.official_wan import (
    DIM,
    IMAGE,
    NUM_HEADS,
    TEXT,
    TEXT_TOKENS,
    Weights,
    official_velocity,
    random_weights,
)

TOLERANCE = {"atol": 1e-4, "rtol": 0}
TIMESTEP = torch.tensor([937.5, 20.0])


def inputs(channels: int = 16, num_tokens: int = TEXT_TOKENS) -> tuple[Tensor, Tensor]:
    """Latents [2, channels, 3, 6, 8] and prompt_embeds [2, num_tokens, TEXT]."""
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(2, channels, 3, 6, 8, generator=generator)
    return latents, torch.randn(2, num_tokens, TEXT, generator=generator)


def checkpoint(folder: Path, weights: Weights) -> Path:
    save_file(weights, folder / "diffusion_pytorch_model.safetensors")
    (folder / "config.json").write_text(json.dumps({"dim": DIM, "num_heads": NUM_HEADS}))
    return folder


def load(folder: Path) -> WanTransformer3DModel:
    return load_transformer(folder, torch.float32, "cpu")


@torch.no_grad()
def ours(transformer: WanTransformer3DModel, latents: Tensor, **given: Tensor) -> Tensor:
    (velocity,) = transformer(latents, TIMESTEP, return_dict=False, **given)
    return velocity


def test_text_to_video_equals_the_official_network(tmp_path: Path) -> None:
    weights = random_weights()
    latents, prompt_embeds = inputs()
    transformer = load(checkpoint(tmp_path, weights))
    expected = official_velocity(weights, latents, TIMESTEP, prompt_embeds)
    assert expected.std() > 0.1
    velocity = ours(transformer, latents, encoder_hidden_states=prompt_embeds)
    torch.testing.assert_close(velocity, expected, **TOLERANCE)
    denoised = Denoiser(transformer)(latents, TIMESTEP / 1000, Prompt(prompt_embeds))
    sigma = TIMESTEP.view(-1, 1, 1, 1, 1) / 1000
    torch.testing.assert_close(denoised, latents - sigma * expected, **TOLERANCE)


def test_image_to_video_equals_the_official_network(tmp_path: Path) -> None:
    weights = random_weights(image=True)
    latents, prompt_embeds = inputs(channels=36)
    image_embeds = torch.randn(2, 257, IMAGE, generator=torch.Generator().manual_seed(2))
    transformer = load(checkpoint(tmp_path, weights))
    assert transformer.config.image_dim == IMAGE
    assert (transformer.config.in_channels, transformer.config.out_channels) == (36, 16)
    given = {"encoder_hidden_states": prompt_embeds, "encoder_hidden_states_image": image_embeds}
    expected = official_velocity(weights, latents, TIMESTEP, prompt_embeds, image_embeds)
    torch.testing.assert_close(ours(transformer, latents, **given), expected, **TOLERANCE)
    assert (expected - official_velocity(weights, latents, TIMESTEP, prompt_embeds)).std() > 0.01


@pytest.mark.parametrize(
    ("guidance_scale", "rounded"), [(3.0, 3008.0), (5.0, 4992.0), (6.0, 6016.0), (4.0, 4000.0)]
)
def test_an_original_guidance_embedder_sees_guidance_in_bf16_as_in_its_training(
    guidance_scale: float, rounded: float, tmp_path: Path
) -> None:
    weights = random_weights(guidance=True)
    latents, prompt_embeds = inputs()
    transformer = load(checkpoint(tmp_path, weights))
    guidance = torch.full((2,), rounded)
    expected = official_velocity(weights, latents, TIMESTEP, prompt_embeds, guidance=guidance)
    with guidance_input(transformer, torch.full((2,), guidance_scale)):
        velocity = ours(transformer, latents, encoder_hidden_states=prompt_embeds)
    torch.testing.assert_close(velocity, expected, **TOLERANCE)


def test_an_embedder_called_otherwise_sees_guidance_as_it_is(tmp_path: Path) -> None:
    weights = random_weights(guidance=True)
    renamed = {
        name.replace("embedding.0.", "embedding.linear_1.").replace(
            "embedding.2.", "embedding.linear_2."
        )
        if name.startswith("guidance")
        else name: weight
        for name, weight in weights.items()
    }
    transformer = load(checkpoint(tmp_path, renamed))
    latents, prompt_embeds = inputs()
    guidance = torch.full((2,), 3000.0)
    expected = official_velocity(weights, latents, TIMESTEP, prompt_embeds, guidance=guidance)
    with guidance_input(transformer, torch.full((2,), 3.0)):
        velocity = ours(transformer, latents, encoder_hidden_states=prompt_embeds)
    torch.testing.assert_close(velocity, expected, **TOLERANCE)
    embedding = time_embedding(transformer)
    assert isinstance(embedding, nn.Module)
    assert not embedding.rounded


def test_padding_with_zeros_to_512_tokens_belongs_to_the_checkpoint(tmp_path: Path) -> None:
    """Trap 41: diffusers' encode_prompt pads to 226 tokens where nothing else is said."""
    weights = random_weights()
    transformer = load(checkpoint(tmp_path, weights))
    latents, short = inputs(num_tokens=20)
    expected = official_velocity(weights, latents, TIMESTEP, short)

    def padded(num_tokens: int) -> Tensor:
        embeds = nn.functional.pad(short, (0, 0, 0, num_tokens - 20))
        return ours(transformer, latents, encoder_hidden_states=embeds)

    torch.testing.assert_close(padded(TEXT_TOKENS), expected, **TOLERANCE)
    assert (padded(226) - expected).abs().max() > 1e-2
