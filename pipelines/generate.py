"""Recipe -> progress -> clip: the one way a video is made.

The studio, the command line and the trainers' samples all come through here.
"""

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pipelines.catalog.entries import ModelEntry, image_problem
from pipelines.catalog.registry import resolved
from pipelines.files.disk import atomic_path
from pipelines.model_cache import Inputs, ModelCache, seeded_noise
from pipelines.models.codecs import PromptEncoder, VideoCodec
from pipelines.models.preview import PreviewDecoder, has_wan_latents, require_wan_latents
from pipelines.recipe import Recipe
from pipelines.sampling.denoiser import Denoiser, DenoiserCall
from pipelines.sampling.first_frame import ImageCondition
from pipelines.sampling.guidance import guide, require_guidance_fits
from pipelines.sampling.prompt import Prompt
from pipelines.sampling.samplers import sample
from pipelines.video import write_poster, write_video


@dataclass(frozen=True)
class Progress:
    """Where a generation stands; `eta_sec` is what the phase still takes, None if not known.

    `estimate` is what the last step took the clean latents to be, [1, C, F, H, W]: what a preview
    decoder can show. None before there is one, and where the latents are not those of Wan's VAE.
    """

    phase: str  # load, encode, denoise, decode, save
    step: int
    total: int
    eta_sec: float | None = None
    estimate: Tensor | None = None


@dataclass(frozen=True)
class Clip:
    """A finished video with what it cost; `notes` are sentences that the user should see."""

    path: Path
    poster: Path
    recipe: Recipe
    load_sec: float
    encode_sec: float
    denoise_sec: float
    decode_sec: float
    total_sec: float
    num_forwards: int
    notes: tuple[str, ...] = ()


class Clock:
    """Seconds since the start, and since the last lap."""

    def __init__(self) -> None:
        self.start = self.last = time.perf_counter()

    def elapsed(self) -> float:
        """On CUDA waits for the work that is queued, so that it is counted where it belongs."""
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        return time.perf_counter() - self.last

    def total(self) -> float:
        return time.perf_counter() - self.start

    def lap(self) -> float:
        seconds, self.last = self.elapsed(), time.perf_counter()
        return seconds

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What happens inside is not counted."""
        began = time.perf_counter()
        yield
        seconds = time.perf_counter() - began
        self.start += seconds
        self.last += seconds


def generate(
    recipe: Recipe, models: ModelCache, out: Path, preview: PreviewDecoder | None = None
) -> Generator[Progress | Clip, None, None]:
    """Makes the video of `recipe` at `out` (.mp4) with a poster beside it; the clip comes last.

    `preview` decodes in place of the VAE: rough, and fast. Closing the iterator between two steps
    cancels; `out` is either whole or not there. ValueError for what cannot work.
    """
    clock = Clock()
    entry = models.registry.entry(recipe.model)
    recipe = _checked(recipe, entry, out)
    yield Progress("load", 0, 1)
    components = models.components(recipe, entry)
    if preview is not None:
        require_wan_latents(components, recipe.model)
    placement = models.placement(components)
    notes = (*components.notes, *models.adapt(recipe, entry, components), *placement.notes())
    model = Denoiser(components.transformer)
    require_guidance_fits(model, recipe.sampler)
    notes += components.prompt_notes(recipe.prompt)
    load_sec = clock.lap()
    yield Progress("encode", 0, 1)
    inputs = models.inputs(recipe, entry, components)
    encode_sec = clock.lap()

    shows_estimate = has_wan_latents(components)
    latents, step_ends_sec = yield from _denoise_steps(recipe, model, inputs, clock, shows_estimate)
    denoise_sec = clock.lap()
    notes += placement.compile_note(step_ends_sec)
    yield Progress("decode", 0, 1)
    video = components.decode(latents) if preview is None else preview.decode(latents)
    notes += () if preview is None else (preview.note,)
    frames = video[0].permute(0, 2, 3, 1).cpu().numpy()
    decode_sec = clock.lap()

    yield Progress("save", 0, 1)
    poster = out.with_suffix(".jpg")
    with atomic_path(out) as new_out, atomic_path(poster) as new_poster:
        write_poster(new_poster, frames[0])
        write_video(new_out, frames, recipe.fps, recipe.to_json())
    seconds = (load_sec, encode_sec, denoise_sec, decode_sec, clock.total())
    yield Clip(out, poster, recipe, *seconds, num_forwards=model.num_forwards, notes=notes)


def _denoise_steps(
    recipe: Recipe, model: Denoiser, inputs: Inputs, clock: Clock, shows_estimate: bool
) -> Generator[Progress, None, tuple[Tensor, list[float]]]:
    """Reports every step; returns the latents and when each step ended, in seconds of the lap.

    What the caller does with a report does not count.
    """
    num_steps = recipe.sampler.num_inference_steps
    yield Progress("denoise", 0, num_steps)
    estimates: list[Tensor] = []
    steps = denoise(recipe, model, inputs, estimates.append)
    step_ends_sec: list[float] = []
    for step in range(1, num_steps + 1):
        latents = next(steps)
        step_ends_sec.append(clock.elapsed())
        eta_sec = step_ends_sec[-1] / step * (num_steps - step)
        estimate = estimates.pop()
        estimates.clear()
        with clock.paused():
            yield Progress(
                "denoise", step, num_steps, eta_sec, estimate if shows_estimate else None
            )
    return latents, step_ends_sec


def _checked(recipe: Recipe, entry: ModelEntry, out: Path) -> Recipe:
    """The recipe with fingerprints. ValueError where it cannot work or `out` is no place."""
    if problem := recipe.sampler.problem():
        raise ValueError(problem)
    if out.suffix != ".mp4" or out.is_dir():
        raise ValueError(f"out is {str(out)!r} but must be the name of an .mp4 file")
    recipe = resolved(recipe, entry)
    if problem := image_problem(entry.preset, recipe):
        raise ValueError(problem)
    return recipe


def denoise(
    recipe: Recipe, model: Denoiser, inputs: Inputs, watch: Callable[[Tensor], None] | None = None
) -> Iterator[Tensor]:
    """Yields the latents [1, C, F, H, W] after every step, without gradients.

    `watch` is given each estimate of the clean latents, which a sampler only walks towards.
    """
    device = inputs.prompt.embeds.device
    generator = torch.Generator()
    generator.set_state(inputs.generator_state)
    spec, noise = recipe.sampler, inputs.noise.to(device)
    guided = guide(model, spec, inputs.negative_embeds)
    if watch is not None:
        guided = _watched(guided, watch)
    steps = sample(spec, guided, noise, inputs.prompt, generator)
    while True:
        with torch.no_grad():  # not around the yield: there it would leak into the caller
            latents = next(steps, None)
        if latents is None:
            return
        yield latents


def _watched(model: DenoiserCall, watch: Callable[[Tensor], None]) -> DenoiserCall:
    def call(noisy_latents: Tensor, sigma: Tensor, prompt: Prompt) -> Tensor:
        denoised = model(noisy_latents, sigma, prompt)
        watch(denoised)
        return denoised

    return call


def sample_video(
    recipe: Recipe,
    prompts: PromptEncoder,
    codec: VideoCodec,
    model: Denoiser,
    image: ImageCondition | None = None,
) -> Tensor:
    """The recipe's video from a model in training, [1, F, 3, H, W] fp32 in [0, 1].

    `recipe.adapters` is not read: `model` has them already; `image` is that of `recipe.image`.
    """
    negative = None
    if recipe.sampler.reads_negative_prompt:
        negative = prompts.encode_prompt([recipe.negative_prompt])
    prompt = Prompt(prompts.encode_prompt([recipe.prompt]), image=image)
    inputs = Inputs(*seeded_noise(recipe, codec), prompt, negative)
    *_, latents = denoise(recipe, model, inputs)
    return codec.decode(latents)
