"""Clips to be measured: all captions of a seed in one batch, each as `generate` would draw it."""

import hashlib
import itertools
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipelines.files.disk import atomic_path
from pipelines.generate import denoise
from pipelines.model_cache import Inputs, ModelCache
from pipelines.models.loading import Components
from pipelines.recipe import Recipe
from pipelines.sampling.denoiser import Denoiser
from pipelines.sampling.first_frame import join
from pipelines.sampling.guidance import require_guidance_fits
from pipelines.sampling.prompt import Prompt
from trainers.worlds.shapes import Caption

DECODE_BATCH = 16  # clips of 17x64x64 take 0.1 GB each in the decoder


@dataclass(frozen=True)
class Clips:
    """Generated clips, in the order of their captions.

    latents [N, C, F, H, W]; videos uint8 [N, F, H, W, 3]; forwards and seconds are for one clip.
    """

    captions: tuple[Caption, ...]
    latents: Tensor
    videos: NDArray[np.uint8]
    num_forwards: int
    denoise_sec: float

    def save(self, path: Path) -> None:
        """Writes an .npz that `load` reads; atomic."""
        with atomic_path(path) as temporary:
            np.savez_compressed(
                temporary,
                captions=np.array([str(caption) for caption in self.captions]),
                latents=self.latents.numpy(),
                videos=self.videos,
                num_forwards=self.num_forwards,
                denoise_sec=self.denoise_sec,
            )

    @classmethod
    def load(cls, path: Path) -> "Clips":
        """Reads what `save` wrote."""
        with np.load(path) as stored:
            return cls(
                tuple(Caption.parse(str(text)) for text in stored["captions"]),
                torch.from_numpy(stored["latents"]),
                stored["videos"],
                int(stored["num_forwards"]),
                float(stored["denoise_sec"]),
            )


def sample_clips(recipes: Sequence[Recipe], models: ModelCache) -> Clips:
    """Generates one clip a recipe; neighbours that differ in prompt and image alone share a batch.

    The recipes belong to one model and agree on size and length.
    """
    entry = models.registry.entry(recipes[0].model)
    components = models.components(recipes[0], entry)
    models.adapt(recipes[0], entry, components)
    model = Denoiser(components.transformer)
    require_guidance_fits(model, recipes[0].sampler)
    batches = [list(b) for _, b in itertools.groupby(recipes, _without_prompt)]
    latents, denoise_sec = [], 0.0
    for batch in batches:
        inputs = _shared_inputs([models.inputs(recipe, entry, components) for recipe in batch])
        began = time.perf_counter()
        *_, denoised = denoise(batch[0], model, inputs)
        latents.append(denoised.cpu())
        denoise_sec += time.perf_counter() - began
        told = f"{batch[0].model}, seed {batch[0].seed}: {denoise_sec:.1f} s for denoising"
        print(told, file=sys.stderr, flush=True)
    return Clips(
        tuple(Caption.parse(recipe.prompt) for recipe in recipes),
        torch.cat(latents),
        decode(torch.cat(latents), components),
        model.num_forwards // len(batches),
        denoise_sec / len(recipes),
    )


def cached_clips(recipes: Sequence[Recipe], models: ModelCache, folder: Path) -> Clips:
    """The clips of these recipes, sampled only if the folder does not hold them yet."""
    digest = hashlib.sha256("".join(recipe.key() for recipe in recipes).encode()).hexdigest()
    path = folder / f"{Path(recipes[0].model).name}-{digest[:16]}.npz"
    if path.is_file():
        return Clips.load(path)
    clips = sample_clips(recipes, models)
    clips.save(path)
    return clips


def decode(latents: Tensor, components: Components) -> NDArray[np.uint8]:
    """Latents [N, C, F, H, W] -> uint8 [N, F, H, W, 3], rounded as in a written video."""
    batches = latents.to(components.device).split(DECODE_BATCH)
    video = torch.cat([components.decode(batch).cpu() for batch in batches])
    pixels: NDArray[np.uint8] = (video * 255).round().byte().permute(0, 1, 3, 4, 2).numpy()
    return pixels


def _without_prompt(recipe: Recipe) -> Recipe:
    return recipe.model_copy(update={"prompt": "", "image": None})


def _shared_inputs(singles: Sequence[Inputs]) -> Inputs:
    """One batch of the inputs of single clips, which agree on all but the prompt and the image."""
    images = [image for single in singles if (image := single.prompt.image) is not None]
    embeds = torch.cat([single.prompt.embeds for single in singles])
    return Inputs(
        noise=singles[0].noise.expand(len(singles), -1, -1, -1, -1),
        generator_state=singles[0].generator_state,
        prompt=Prompt(embeds, image=join(images) if images else None),
        negative_embeds=singles[0].negative_embeds,
    )
