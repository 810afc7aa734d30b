import pytest
import torch
from diffusers import WanTransformer3DModel
from torch import Tensor

from pipelines.sampling.denoiser import Denoiser
from pipelines.sampling.guidance import guided
from pipelines.sampling.prompt import Prompt

PROMPT = Prompt(torch.randn(1, 12, 16, generator=torch.Generator().manual_seed(1)))
LATENTS = torch.randn(1, 16, 2, 4, 4, generator=torch.Generator().manual_seed(2))
SIGMA = torch.tensor([0.75])


@pytest.fixture
def model(models_dir: str) -> Denoiser:
    transformer = WanTransformer3DModel.from_pretrained(f"{models_dir}/mini/transformer")
    return Denoiser(transformer.requires_grad_(False))


def test_denoised_is_the_noisy_latents_less_sigma_times_the_networks_velocity(
    model: Denoiser,
) -> None:
    (velocity,) = model.transformer(
        hidden_states=LATENTS,
        timestep=torch.tensor([750.0]),
        encoder_hidden_states=PROMPT.embeds,
        return_dict=False,
    )
    expected = LATENTS - 0.75 * velocity
    torch.testing.assert_close(model(LATENTS, SIGMA, PROMPT), expected, atol=1e-6, rtol=0)
    assert model.num_forwards == 1


def test_a_bf16_network_answers_in_fp32(model: Denoiser) -> None:
    whole = model(LATENTS, SIGMA, PROMPT)
    model.transformer.to(torch.bfloat16)
    half = model(LATENTS, SIGMA, PROMPT)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, whole, atol=0.1, rtol=0)


@pytest.mark.parametrize("guidance_scale", [1.5, 5.0])
def test_guidance_extrapolates_from_the_negative_prompt(
    model: Denoiser, guidance_scale: float
) -> None:
    nothing = torch.zeros_like(PROMPT.embeds)
    positive, negative = model(LATENTS, SIGMA, PROMPT), model(LATENTS, SIGMA, Prompt(nothing))
    expected = negative + guidance_scale * (positive - negative)
    answer = guided(model, nothing, guidance_scale)(LATENTS, SIGMA, PROMPT)
    torch.testing.assert_close(answer, expected, atol=1e-5, rtol=0)
    assert model.num_forwards == 4


def test_guidance_of_one_or_less_is_the_model_itself(model: Denoiser) -> None:
    def never(noisy_latents: Tensor, sigma: Tensor, prompt: Prompt) -> Tensor:
        raise AssertionError

    assert guided(never, PROMPT.embeds, 1.0) is never
    assert guided(model, PROMPT.embeds, 0.0) is model
