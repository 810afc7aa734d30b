"""Every loss against a case solved by hand."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipelines.sampling.prompt import Prompt
from trainers.algorithm import Batch, Rng
from trainers.algorithms import autoencoder, finetune


def rng(seed: int = 0) -> Rng:
    return Rng(torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed))


class KnowsLatents(nn.Module):
    """The exact velocity where latents are known: (noisy - latents) / sigma = noise - latents."""

    def __init__(self, latents: Tensor, offset: float = 0.0):
        super().__init__()
        self.latents, self.offset, self.prompts = latents, offset, torch.empty(0)
        self.sigmas: Tensor = torch.empty(0)

    def velocity(self, noisy_latents: Tensor, sigma: Tensor, prompt: Prompt) -> Tensor:
        self.prompts, self.sigmas = prompt.embeds, sigma
        return (noisy_latents - self.latents) / sigma.view(-1, 1, 1, 1, 1) + self.offset


def flow_batch(batch_size: int) -> Batch:
    generator = torch.Generator().manual_seed(7)
    return Batch(
        latents=torch.randn(batch_size, 2, 1, 2, 2, generator=generator, dtype=torch.float32),
        prompt=Prompt(torch.ones(batch_size, 3, 4)),
        negative_embeds=torch.zeros(1, 3, 4),
    )


def test_the_flow_loss_is_zero_for_the_exact_velocity_and_the_square_of_an_offset() -> None:
    batch = flow_batch(16)
    assert batch.latents is not None
    for offset in (0.0, 0.5):
        student = KnowsLatents(batch.latents, offset)
        method = finetune.Method(finetune.Config(), {"student": student})
        loss = method.flow_loss(batch, rng()).value
        assert loss.item() == pytest.approx(offset**2, abs=1e-4)


def test_prompts_are_dropped_for_the_stated_share() -> None:
    batch = flow_batch(4000)
    assert batch.latents is not None
    student = KnowsLatents(batch.latents)
    config = finetune.Config(prompt_dropout=0.25)
    finetune.Method(config, {"student": student}).flow_loss(batch, rng())
    dropped = (student.prompts.flatten(1).sum(1) == 0).float().mean().item()
    assert dropped == pytest.approx(0.25, abs=0.03)


def test_noise_levels_are_uniform_before_the_shift() -> None:
    batch = flow_batch(4000)
    assert batch.latents is not None
    student = KnowsLatents(batch.latents)
    finetune.Method(finetune.Config(flow_shift=3.0), {"student": student}).flow_loss(batch, rng())
    # Uniform u shifted by 3 has the median 3 * 0.5 / (1 + 2 * 0.5) = 0.75.
    assert student.sigmas.median().item() == pytest.approx(0.75, abs=0.02)
    assert student.sigmas.min() >= 0
    assert student.sigmas.max() <= 1


class OffByATenth(nn.Module):
    """Decodes everything 0.1 too bright, with a standard normal posterior shifted by one."""

    def forward(self, video: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return video + 0.1, torch.ones_like(noise), torch.zeros_like(noise)


def test_the_autoencoder_loss_is_absolute_plus_squared_error_plus_divergence() -> None:
    config = autoencoder.Config(squared_weight=2.0, kl_weight=0.3)
    method = autoencoder.Method(config, {"student": OffByATenth()})
    batch = Batch(video=torch.rand(2, 5, 3, 16, 16) * 0.5, latent_shape=(16, 2, 2, 2))
    loss = method.reconstruction_loss(batch, rng())
    # In [-1, 1] the error is 0.2; KL(N(1, 1) || N(0, 1)) is 1/2.
    assert loss.value.item() == pytest.approx(0.2 + 2 * 0.04 + 0.3 * 0.5, rel=1e-4)
    assert loss.metrics["psnr_db"].item() == pytest.approx(20.0, abs=1e-3)


def test_a_batch_without_what_the_method_reads_names_the_data_source() -> None:
    roles: Any = {"student": nn.Identity()}
    with pytest.raises(ValueError, match=r"^data\.source: this method reads latents"):
        finetune.Method(finetune.Config(), roles).flow_loss(Batch(), rng())
