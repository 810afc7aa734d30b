"""Models in memory, and what recipes that agree share: embeddings, noise, images."""

import gc
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import psutil
import torch
from torch import Tensor

from pipelines.catalog.entries import ModelEntry
from pipelines.catalog.registry import Registry
from pipelines.files.disk import joint_fingerprint
from pipelines.files.layouts import weight_bytes
from pipelines.lora.apply import apply_adapters
from pipelines.memory import PLAIN, parse_memory
from pipelines.models.codecs import VideoCodec
from pipelines.models.first_frame import ImageConditioner
from pipelines.models.loading import Components, best_dtype, load_components
from pipelines.models.placement import Placement, require_no_adapters
from pipelines.recipe import Adapter, Recipe
from pipelines.sampling.first_frame import ImageCondition
from pipelines.sampling.prompt import Prompt
from pipelines.sampling.samplers import draw_noise

MAX_PROMPTS = 64  # kept encoded; 4 MB each for Wan2.1
MAX_IMAGES = 4  # kept encoded; 9 MB each for 81 frames of 832x480
MAX_NOISES = 4  # kept drawn; 8 MB each for 81 frames of 832x480
MEMORY_MARGIN = 1.3  # free memory a model needs, times its weights


@dataclass(frozen=True)
class Inputs:
    """What enters the denoising of one video: noise [1, C, F, H, W] and what it is to show.

    `generator_state` follows the noise; negative_embeds [1, L, D] is None where no forward reads
    it.
    """

    noise: Tensor
    generator_state: Tensor
    prompt: Prompt
    negative_embeds: Tensor | None


class ModelCache:
    """Base models in memory; recipes that agree on prompt or noise share the same tensors.

    Students that are LoRAs share their base, so that switching between them loads nothing. A base
    is held once: with other memory settings it is loaded again.
    `num_loads` and `num_encodes` count what was not shared.
    """

    def __init__(self, registry: Registry, device: str):
        self.registry = registry
        self.device = device
        self.num_loads = 0
        self.num_encodes = 0
        self._bases: OrderedDict[object, Placement] = OrderedDict()
        self._embeds: Recent[Tensor] = Recent(MAX_PROMPTS)
        self._noises: Recent[tuple[Tensor, Tensor]] = Recent(MAX_NOISES)
        self._conditions: Recent[ImageCondition] = Recent(MAX_IMAGES)

    def components(self, recipe: Recipe, entry: ModelEntry) -> Components:
        """The networks of a resolved recipe, loaded at most once while memory lasts.

        `entry` is the recipe's model. LoRAs, a student's own included, are applied by `adapt`.
        """
        assert entry.folder is not None
        memory = parse_memory(recipe.memory)
        require_no_adapters(memory, len(entry.adapters) + len(recipe.adapters))
        text_length = entry.preset.text_length
        key = (entry.networks, joint_fingerprint(entry.networks), text_length)
        if key in self._bases and not self._bases[key].serves(recipe):
            del self._bases[key]
            gc.collect()
        if key not in self._bases:
            alone = memory == "fit" and self.device != "cpu"  # `fit` gives a model the device
            self._make_room(sum(map(weight_bytes, entry.networks)), alone)
            device = self.device if memory == PLAIN else "cpu"
            loaded = load_components(
                entry.folder,
                text_length,
                device,
                best_dtype(self.device),
                transformer=entry.transformer,
                geometry=entry.preset.geometry,
            )
            self._bases[key] = Placement(loaded, self.device, recipe)
            self.num_loads += 1
        self._bases.move_to_end(key)
        return self._bases[key].components

    def placement(self, components: Components) -> Placement:
        """How these networks lie in memory."""
        return next(held for held in self._bases.values() if held.components is components)

    def adapt(self, recipe: Recipe, entry: ModelEntry, components: Components) -> tuple[str, ...]:
        """Makes exactly the student's own LoRA and the recipe's active; returns notes."""
        own = [Adapter(path=str(path)) for path in entry.adapters]
        notes = apply_adapters(components.transformer, (*own, *recipe.adapters))
        self.placement(components).settle()
        return notes

    def inputs(self, recipe: Recipe, entry: ModelEntry, components: Components) -> Inputs:
        """The recipe's noise, embeddings and image, the same tensors for all recipes that agree."""
        noise, state = self._noises.get(
            (recipe.seed, recipe.latent_shape(components.geometry)),
            lambda: seeded_noise(recipe, components),
        )
        negative = None
        if recipe.sampler.reads_negative_prompt:
            negative = self._encode(components, recipe.negative_prompt)
        embeds = self._encode(components, recipe.prompt)
        prompt = Prompt(embeds, image=self._condition(recipe, entry, components))
        return Inputs(noise, state, prompt, negative)

    def _condition(
        self, recipe: Recipe, entry: ModelEntry, components: Components
    ) -> ImageCondition | None:
        image = recipe.image
        if image is None:
            return None
        assert entry.folder is not None
        how = entry.preset.image_preprocessing
        assert how is not None  # `image_problem` has been asked
        assert image.fingerprint is not None  # the recipe is resolved
        conditioner = ImageConditioner(components, components.image_encoder, how)
        size = (recipe.width, recipe.height, recipe.num_frames)
        precision = self.placement(components).settings.vae
        key = (joint_fingerprint([entry.folder]), how, image.fingerprint, size, precision)
        return self._conditions.get(
            key,
            lambda: conditioner.condition(Path(image.path), *size).to(torch.device(self.device)),
        )

    def _encode(self, components: Components, prompt: str) -> Tensor:
        def encode() -> Tensor:
            self.num_encodes += 1
            return self.placement(components).encode_prompt([prompt])

        rounded = self.placement(components).settings.text_encoder == "fp8_storage"
        key = (components.text_fingerprint, components.text_length, rounded, prompt)
        return self._embeds.get(key, encode)

    def _make_room(self, num_bytes: int, alone: bool) -> None:
        """Drops the models used longest ago until the next one fits; all where it is `alone`."""
        while self._bases and (alone or self._free_bytes() < num_bytes * MEMORY_MARGIN):
            self._bases.popitem(last=False)
            gc.collect()  # PEFT's wrappers refer to each other in circles

    def _free_bytes(self) -> int:
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()
            return torch.cuda.mem_get_info(self.device)[0]
        return int(psutil.virtual_memory().available)


def seeded_noise(recipe: Recipe, codec: VideoCodec) -> tuple[Tensor, Tensor]:
    """The seed's noise [1, C, F, H, W], and the generator's state after it, where LCM goes on."""
    generator = torch.Generator().manual_seed(recipe.seed)
    noise = draw_noise((1, *recipe.latent_shape(codec.geometry)), generator)
    return noise, generator.get_state()


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
