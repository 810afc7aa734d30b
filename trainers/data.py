"""Where batches come from. Which samples a batch holds is a function of (seed, step, stream) alone.

A stream is one micro-batch of one rank: `micro * num_ranks + rank`. Two ranks with one micro-batch
each therefore see exactly what one rank sees with two.
"""

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pipelines.loading import load_components
from pipelines.recipe import TEMPORAL_STRIDE
from pipelines.registry import ModelEntry, Registry
from trainers.algorithm import Batch
from trainers.config import PreparedData, PromptData, ShapesData, Stage, TrainConfig
from trainers.worlds import shapes

INDEX = "index.json"
NEGATIVE = "negative.safetensors"
SAMPLES_PER_SHARD = 2048
SPATIAL_STRIDE = 8  # of the VAE


class DataSource(Protocol):
    """step and stream -> Batch."""

    def batch(self, step: int, stream: int, num_streams: int) -> Batch: ...


def stream_seed(seed: int, step: int, stream: int) -> int:
    """A 64-bit seed for one (seed, step, stream); neighbours are independent."""
    return int(np.random.SeedSequence([seed, step, stream]).generate_state(1, np.uint64)[0])


class Order:
    """An endless order of samples: every epoch is one permutation, drawn from the seed."""

    def __init__(self, num_samples: int, seed: int):
        self.num_samples, self.seed = num_samples, seed
        self.epoch, self.permutation = -1, torch.empty(0)

    def index(self, position: int) -> int:
        """The sample at a position of the order."""
        epoch, offset = divmod(position, self.num_samples)
        if epoch != self.epoch:
            generator = torch.Generator().manual_seed(stream_seed(self.seed, epoch, 0))
            self.permutation = torch.randperm(self.num_samples, generator=generator)
            self.epoch = epoch
        return int(self.permutation[offset])


def write_prepared(
    folder: Path,
    samples: Iterable[tuple[str, Tensor, Tensor]],
    negative_prompt_embeds: Tensor,
    text_length: int,
) -> None:
    """Writes (caption, latents [C, F, H, W], prompt_embeds [L, D] unpadded) as sharded safetensors.

    The index is written last: a folder without it is incomplete and is refused by `Prepared`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / INDEX).unlink(missing_ok=True)
    save_file({"prompt_embeds": negative_prompt_embeds.contiguous()}, folder / NEGATIVE)
    captions: list[str] = []
    shards: list[int] = []
    tensors: dict[str, Tensor] = {}

    def flush() -> None:
        if tensors:
            save_file(tensors, folder / _shard_name(len(shards)))
            shards.append(len(tensors) // 2)
            tensors.clear()

    for caption, latents, prompt_embeds in samples:
        position = len(tensors) // 2
        tensors[f"{position}.latents"] = latents.contiguous()
        tensors[f"{position}.prompt_embeds"] = prompt_embeds.contiguous()
        captions.append(caption)
        if position + 1 == SAMPLES_PER_SHARD:
            flush()
    flush()
    index = {"version": 1, "text_length": text_length, "shards": shards, "captions": captions}
    partial = folder / f"{INDEX}.partial"
    partial.write_text(json.dumps(index))
    os.replace(partial, folder / INDEX)


def _shard_name(number: int) -> str:
    return f"shard-{number:05d}.safetensors"


class Prepared:
    """Reads what `write_prepared` wrote; shards are memory-mapped."""

    def __init__(self, settings: PreparedData, seed: int):
        self.settings, self.seed = settings, seed
        index_path = settings.folder / INDEX
        if not index_path.is_file():
            raise ValueError(
                f"data.folder: {settings.folder} holds no finished data set; prepare one first"
            )
        index = json.loads(index_path.read_text())
        self.text_length: int = index["text_length"]
        self.captions: list[str] = index["captions"]
        self.locations = [
            (shard, i) for shard, count in enumerate(index["shards"]) for i in range(count)
        ]
        if len(self.locations) < 1:
            raise ValueError(f"data.folder: {settings.folder} holds no samples")
        files = ExitStack()  # closed with the process
        try:
            self.shards: list[Any] = [
                files.enter_context(safe_open(settings.folder / _shard_name(n), "pt"))
                for n in range(len(index["shards"]))
            ]
            negative = files.enter_context(safe_open(settings.folder / NEGATIVE, "pt"))
        except (OSError, SafetensorError) as error:
            raise ValueError(
                f"data.folder: {settings.folder} is damaged ({error}); prepare it again"
            ) from error
        self.order = Order(len(self.locations), seed)
        self.negative = self._pad(negative.get_tensor("prompt_embeds"))[None]

    def batch(self, step: int, stream: int, num_streams: int) -> Batch:
        """The samples of one micro-batch: an epoch is one permutation of the data set."""
        first = (step * num_streams + stream) * self.settings.batch_size
        chosen = [self.order.index(first + i) for i in range(self.settings.batch_size)]
        latents, prompt_embeds = zip(*(self._read(index) for index in chosen), strict=True)
        return Batch(
            prompts=tuple(self.captions[index] for index in chosen),
            latents=torch.stack(latents).float(),
            prompt_embeds=torch.stack(prompt_embeds),
            negative_prompt_embeds=self.negative,
            latent_shape=tuple(latents[0].shape),
        )

    def _read(self, index: int) -> tuple[Tensor, Tensor]:
        shard, position = self.locations[index]
        latents = self.shards[shard].get_tensor(f"{position}.latents")
        return latents, self._pad(self.shards[shard].get_tensor(f"{position}.prompt_embeds"))

    def _pad(self, prompt_embeds: Tensor) -> Tensor:
        """[L, D] -> [text_length, D] fp32 with zero rows: what Wan was trained with, unmasked."""
        missing = self.text_length - prompt_embeds.shape[0]
        return torch.nn.functional.pad(prompt_embeds.float(), (0, 0, 0, missing))


class RenderedShapes:
    """Clips of the shapes world around the moving shape, by the curriculum in `stages`."""

    def __init__(self, settings: ShapesData, seed: int):
        self.settings, self.seed = settings, seed
        self.captions = shapes.training_captions()

    def batch(self, step: int, stream: int, num_streams: int) -> Batch:
        """Freshly drawn clips; no two micro-batches share one."""
        stages = self.settings.stages
        stage = next((s for s in stages if step < s.until_step), stages[-1])
        rng = np.random.default_rng(stream_seed(self.seed, step, stream))
        captions, clips = zip(*self._clips(stage, rng), strict=True)
        video = torch.from_numpy(np.stack(clips)).permute(0, 1, 4, 2, 3)
        return Batch(prompts=captions, video=video)

    def _clips(self, stage: Stage, rng: np.random.Generator) -> Iterator[tuple[str, np.ndarray]]:
        size, num_frames = self.settings.size, self.settings.num_frames
        for _ in range(stage.batch_size):
            caption = self.captions[rng.integers(len(self.captions))]
            start = int(rng.integers(num_frames - stage.num_frames + 1))
            frames = slice(start, start + stage.num_frames)
            clip_seed = int(rng.integers(2**31))
            clip = shapes.render(caption, clip_seed, num_frames, size, size, frames)
            yield str(caption), _crop_at_shape(clip, min(stage.crop, size), rng)


def _crop_at_shape(clip: np.ndarray, crop: int, rng: np.random.Generator) -> np.ndarray:
    """Cuts a square that holds a random point of the shape. [F, H, W, 3] -> [F, crop, crop, 3]."""
    middle = clip[len(clip) // 2]
    inside = np.argwhere(np.abs(middle - np.median(middle, axis=(0, 1))).max(-1) > 0.1)
    point = inside[rng.integers(len(inside))]
    corner = point - rng.integers(crop // 4, crop - crop // 4, size=2)
    top, left = np.clip(corner, 0, np.array(middle.shape[:2]) - crop)
    return clip[:, top : top + crop, left : left + crop]


class Prompts:
    """Prompts alone, encoded when they are needed: what data-free distillation learns from."""

    def __init__(self, settings: PromptData, seed: int, entry: ModelEntry, device: str):
        self.settings = settings
        self.prompts = _read_prompts(settings.file)
        self.order = Order(len(self.prompts), seed)
        assert entry.folder is not None
        components = load_components(entry.folder, entry.preset.text_length, device)
        own = entry.preset
        num_frames = settings.num_frames or own.num_frames
        self.latent_shape = (
            components.num_latent_channels,
            (num_frames - 1) // TEMPORAL_STRIDE + 1,
            (settings.height or own.height) // SPATIAL_STRIDE,
            (settings.width or own.width) // SPATIAL_STRIDE,
        )
        self.encode = components.encode_prompt
        self.negative = self.encode([own.negative_prompt])

    def batch(self, step: int, stream: int, num_streams: int) -> Batch:
        """The prompts of one micro-batch: an epoch is one permutation of the file."""
        first = (step * num_streams + stream) * self.settings.batch_size
        chosen = [
            self.prompts[self.order.index(first + i)] for i in range(self.settings.batch_size)
        ]
        return Batch(
            prompts=tuple(chosen),
            prompt_embeds=self.encode(chosen),
            negative_prompt_embeds=self.negative,
            latent_shape=self.latent_shape,
        )


def _read_prompts(file: Path) -> list[str]:
    if not file.is_file():
        raise ValueError(f"data.file: there is no file {file}")
    lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    prompts = [line for line in lines if line and not line.startswith("#")]
    if not prompts:
        raise ValueError(f"data.file: {file} holds no prompts; write one a line")
    return prompts


def build_data(config: TrainConfig[Any], device: torch.device) -> DataSource:
    """The source that the configuration names."""
    settings, seed = config.data, config.seed
    if isinstance(settings, PreparedData):
        return Prepared(settings, seed)
    if isinstance(settings, PromptData):
        return Prompts(settings, seed, Registry().entry(config.model), str(device))
    return RenderedShapes(settings, seed)
