"""Recipe -> progress -> clip: the one way a video is made.

The studio, the command line and the trainers' samples all come through here.
"""

import gc
import time
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import psutil
import torch
from torch import Tensor

from pipelines.adapters import apply_adapters
from pipelines.denoiser import Denoiser, GuidedDenoiserCall, check_guidance, guide
from pipelines.files import atomic_path, joint_fingerprint, weight_bytes
from pipelines.loading import Components, PromptEncoder, VideoCodec, load_components
from pipelines.recipe import Adapter, Recipe
from pipelines.registry import Registry
from pipelines.sampling import draw_noise, sample
from pipelines.video import write_poster, write_video

MAX_PROMPTS = 64  # kept encoded; 4 MB each for Wan2.1
MAX_NOISES = 4  # kept drawn; 8 MB each for 81 frames of 832x480
MEMORY_MARGIN = 1.3  # free memory a model needs, times its weights


@dataclass(frozen=True)
class Progress:
    """Where a generation stands; `eta_sec` is what the phase still takes, None if not known."""

    phase: str  # load, encode, denoise, decode, save
    step: int
    total: int
    eta_sec: float | None = None


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


@dataclass(frozen=True)
class Inputs:
    """What enters the denoising of one video: noise [1, C, F, H, W] and embeddings [1, L, D].

    `generator_state` follows the noise; `negative_prompt_embeds` is None where no forward reads it.
    """

    noise: Tensor
    generator_state: Tensor
    prompt_embeds: Tensor
    negative_prompt_embeds: Tensor | None


Value = TypeVar("Value")


class Recent(Generic[Value]):
    """The values used last, at most `max_size` of them."""

    def __init__(self, max_size: int):
        self.max_size = max_size
        self.values: OrderedDict[object, Value] = OrderedDict()

    def get(self, key: object, make: Callable[[], Value]) -> Value:
        """The value of `key`, made if it is not there."""
        if key not in self.values:
            self.values[key] = make()
        self.values.move_to_end(key)
        if len(self.values) > self.max_size:
            self.values.popitem(last=False)
        return self.values[key]


class ModelCache:
    """Base models in memory; recipes that agree on prompt or noise share the same tensors.

    Students that are LoRAs share their base, so that switching between them loads nothing.
    `num_loads` and `num_encodes` count what was not shared.
    """

    def __init__(self, registry: Registry, device: str):
        self.registry = registry
        self.device = device
        self.num_loads = 0
        self.num_encodes = 0
        self._bases: OrderedDict[object, Components] = OrderedDict()
        self._embeds: Recent[Tensor] = Recent(MAX_PROMPTS)
        self._noises: Recent[tuple[Tensor, Tensor]] = Recent(MAX_NOISES)

    def components(self, recipe: Recipe) -> Components:
        """The networks of a resolved recipe, loaded at most once while memory lasts.

        LoRAs, a student's own included, are applied by `adapt`.
        """
        entry = self.registry.entry(recipe.model)
        assert entry.folder is not None
        text_length = entry.preset.text_length
        key = (entry.networks, joint_fingerprint(entry.networks), text_length)
        if key not in self._bases:
            self._make_room(sum(map(weight_bytes, entry.networks)))
            self._bases[key] = load_components(
                entry.folder, text_length, self.device, transformer=entry.transformer
            )
            self.num_loads += 1
        self._bases.move_to_end(key)
        return self._bases[key]

    def adapt(self, recipe: Recipe, components: Components) -> tuple[str, ...]:
        """Makes exactly the student's own LoRA and the recipe's active; returns notes."""
        own = [Adapter(path=str(path)) for path in self.registry.entry(recipe.model).adapters]
        return apply_adapters(components.transformer, (*own, *recipe.adapters))

    def inputs(self, recipe: Recipe, components: Components) -> Inputs:
        """The recipe's noise and embeddings, the same tensors for all recipes that agree."""
        noise, state = self._noises.get(
            (recipe.seed, components.num_latent_channels, recipe.latent_shape),
            lambda: _seeded_noise(recipe, components),
        )
        negative = None
        if recipe.sampler.reads_negative_prompt:
            negative = self._encode(components, recipe.negative_prompt)
        return Inputs(noise, state, self._encode(components, recipe.prompt), negative)

    def _encode(self, components: Components, prompt: str) -> Tensor:
        def encode() -> Tensor:
            self.num_encodes += 1
            return components.encode_prompt([prompt])

        key = (components.text_fingerprint, components.text_length, prompt)
        return self._embeds.get(key, encode)

    def _make_room(self, num_bytes: int) -> None:
        """Drops the models used longest ago until the next one fits."""
        while self._bases and self._free_bytes() < num_bytes * MEMORY_MARGIN:
            self._bases.popitem(last=False)
            gc.collect()  # PEFT's wrappers refer to each other in circles

    def _free_bytes(self) -> int:
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()
            return torch.cuda.mem_get_info(self.device)[0]
        return int(psutil.virtual_memory().available)


def generate(
    recipe: Recipe, models: ModelCache, out: Path
) -> Generator[Progress | Clip, None, None]:
    """Makes the video of `recipe` at `out` (.mp4) with a poster beside it; the clip comes last.

    Closing the iterator between two steps cancels; `out` is either whole or not there. ValueError
    for what cannot work.
    """
    if problem := recipe.sampler.problem():
        raise ValueError(problem)
    if out.suffix != ".mp4" or out.is_dir():
        raise ValueError(f"out is {str(out)!r} but must be the name of an .mp4 file")
    clock = _Clock()
    recipe = models.registry.resolve(recipe)
    yield Progress("load", 0, 1)
    components = models.components(recipe)
    notes = models.adapt(recipe, components)
    model = Denoiser(components.transformer)
    check_guidance(model, recipe.sampler)
    notes += components.prompt_notes(recipe.prompt)
    load_sec = clock.lap()
    yield Progress("encode", 0, 1)
    inputs = models.inputs(recipe, components)
    encode_sec = clock.lap()

    num_steps = recipe.sampler.num_inference_steps
    yield Progress("denoise", 0, num_steps)
    steps = denoise(recipe, model, inputs)
    for step in range(1, num_steps + 1):
        latents = next(steps)
        eta_sec = clock.elapsed() / step * (num_steps - step)
        yield Progress("denoise", step, num_steps, eta_sec)
    denoise_sec = clock.lap()
    yield Progress("decode", 0, 1)
    video = components.decode(latents)
    frames = video[0].permute(0, 2, 3, 1).cpu().numpy()
    decode_sec = clock.lap()

    yield Progress("save", 0, 1)
    poster = out.with_suffix(".jpg")
    with atomic_path(out) as new_out, atomic_path(poster) as new_poster:
        write_poster(new_poster, frames[0])
        write_video(new_out, frames, recipe.fps, recipe.to_json())
    seconds = (load_sec, encode_sec, denoise_sec, decode_sec, clock.total())
    yield Clip(out, poster, recipe, *seconds, num_forwards=model.num_forwards, notes=notes)


def denoise(recipe: Recipe, model: GuidedDenoiserCall, inputs: Inputs) -> Iterator[Tensor]:
    """Yields the latents [1, C, F, H, W] after every step, without gradients."""
    device = inputs.prompt_embeds.device
    generator = torch.Generator()
    generator.set_state(inputs.generator_state)
    spec, noise = recipe.sampler, inputs.noise.to(device)
    guided = guide(model, spec, inputs.negative_prompt_embeds)
    steps = sample(spec, guided, noise, inputs.prompt_embeds, generator)
    while True:
        with torch.no_grad():  # not around the yield: there it would leak into the caller
            latents = next(steps, None)
        if latents is None:
            return
        yield latents


def sample_video(
    recipe: Recipe, prompts: PromptEncoder, codec: VideoCodec, model: GuidedDenoiserCall
) -> Tensor:
    """The recipe's video from a model in training, [1, F, 3, H, W] fp32 in [0, 1].

    `recipe.adapters` is not read: `model` has them already.
    """
    negative = None
    if recipe.sampler.reads_negative_prompt:
        negative = prompts.encode_prompt([recipe.negative_prompt])
    embeds = prompts.encode_prompt([recipe.prompt])
    inputs = Inputs(*_seeded_noise(recipe, codec), embeds, negative)
    *_, latents = denoise(recipe, model, inputs)
    return codec.decode(latents)


def _seeded_noise(recipe: Recipe, codec: VideoCodec) -> tuple[Tensor, Tensor]:
    """The seed's noise [1, C, F, H, W], and the generator's state after it, where LCM goes on."""
    generator = torch.Generator().manual_seed(recipe.seed)
    noise = draw_noise((1, codec.num_latent_channels, *recipe.latent_shape), generator)
    return noise, generator.get_state()


class _Clock:
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
