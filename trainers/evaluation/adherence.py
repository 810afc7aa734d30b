"""How far clips follow their prompts, as a number without a ceiling; for sweeps over guidance.

A conditional model is an implicit classifier: a clip follows its prompt as far as the model
explains it better with the prompt than without (Li et al. 2023, arXiv:2303.16203). Adherence is

    mean of |v(empty) - (noise - latents)|^2 - |v(prompt) - (noise - latents)|^2

over elements, noise levels and clips, where v is the teacher's velocity at the noisy latents
without guidance: up to its weight over noise levels the log-likelihood ratio of the prompt, the
very quantity that guidance raises. It reads latents, so decoding plays no part in it.
"""

import torch
from torch import Tensor

from pipelines.model_cache import ModelCache
from pipelines.recipe import Recipe
from pipelines.sampling.denoiser import Denoiser
from pipelines.sampling.flow import add_noise
from pipelines.sampling.prompt import Prompt
from pipelines.sampling.samplers import draw_noise
from trainers.evaluation.clips import Clips

SIGMAS = (0.5, 0.7, 0.8, 0.9, 0.95)  # where the prompt decides what becomes of the noise
NOISE_SEED = 2**32  # no clip was generated from it
BATCH_SIZE = 64


@torch.no_grad()
def adherence(clips: Clips, teacher: Recipe, models: ModelCache) -> float:
    """The prompt's mean advantage over the empty prompt, per element; about 0 if not followed."""
    entry = models.registry.entry(teacher.model)
    components = models.components(teacher, entry)
    models.adapt(teacher, entry, components)
    model = Denoiser(components.transformer)
    generator = torch.Generator().manual_seed(NOISE_SEED)
    empty = components.encode_prompt([""])
    captions = [str(caption) for caption in clips.captions]
    advantages = []
    for first in range(0, len(captions), BATCH_SIZE):
        latents = clips.latents[first : first + BATCH_SIZE].to(components.device)
        prompt = Prompt(components.encode_prompt(captions[first : first + BATCH_SIZE]))
        for level in SIGMAS:
            sigma = torch.full((len(latents),), level, device=components.device)
            noise = draw_noise(tuple(latents.shape), generator).to(components.device)
            noisy_latents, velocity = add_noise(latents, noise, sigma), noise - latents

            def error(prompt: Prompt) -> Tensor:
                predicted = model.velocity(noisy_latents, sigma, prompt)  # noqa: B023
                return (predicted - velocity).square().mean((1, 2, 3, 4))  # noqa: B023

            advantages.append(error(prompt.with_text(empty)) - error(prompt))
    return float(torch.cat(advantages).mean())
