"""Where batches come from. Which samples a batch holds is a function of (seed, step, stream) alone.

A stream is one micro-batch of one rank: `micro * num_ranks + rank`. Two ranks with one micro-batch
each therefore see exactly what one rank sees with two.
"""

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pipelines.recipe import TEMPORAL_STRIDE
from trainers.algorithm import Batch
from trainers.config import TrainConfig
from trainers.data_settings import Bucket, PreparedData, PromptData, ShapesData, Stage
from trainers.models import Codecs
from trainers.order import BucketOrder, stream_seed
from trainers.worlds.shapes import render, training_captions

INDEX = "index.json"
VERSION = 2  # 1 had no shapes: they are read from the shards
NEGATIVE = "negative.safetensors"
SAMPLES_PER_SHARD = 2048
SPATIAL_STRIDE = 8  # of the VAE


class DataSource(Protocol):
    """step and stream -> Batch."""

    def batch(self, step: int, stream: int, num_streams: int) -> Batch: ...


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
    shapes: list[tuple[int, ...]] = []
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
        shapes.append(tuple(latents.shape))
        if position + 1 == SAMPLES_PER_SHARD:
            flush()
    flush()
    index = {"version": VERSION, "text_length": text_length, "shards": shards}
    index |= {"captions": captions, "shapes": shapes}
    partial = folder / f"{INDEX}.partial"
    partial.write_text(json.dumps(index))
    os.replace(partial, folder / INDEX)


def _shard_name(number: int) -> str:
    return f"shard-{number:05d}.safetensors"


class Prepared:
    """Reads what `write_prepared` wrote; shards are memory-mapped. Equal shapes form a bucket."""

    def __init__(self, settings: PreparedData, seed: int):
        self.settings = settings
        index_path = settings.folder / INDEX
        if not index_path.is_file():
            raise ValueError(
                f"data.folder: {settings.folder} holds no finished data set; prepare one first"
            )
        index = json.loads(index_path.read_text())
        if index["version"] > VERSION:
            raise ValueError(
                f"data.folder: {settings.folder} was prepared by a newer version; update this one"
            )
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
        self.negative = self._pad(negative.get_tensor("prompt_embeds"))[None]
        self.buckets = self._grouped(index.get("shapes") or self._shapes())
        self.order = BucketOrder([len(bucket) for bucket in self.buckets], seed)

    def batch(self, step: int, stream: int, num_streams: int) -> Batch:
        """The samples of one micro-batch: an epoch is one permutation of the bucket."""
        bucket = self.buckets[self.order.bucket(step)]
        positions = self.order.chosen(step, stream, num_streams, self.settings.batch_size)
        chosen = [bucket[position] for position in positions]
        latents, prompt_embeds = zip(*(self._read(index) for index in chosen), strict=True)
        return Batch(
            prompts=tuple(self.captions[index] for index in chosen),
            latents=torch.stack(latents).float(),
            prompt_embeds=torch.stack(prompt_embeds),
            negative_prompt_embeds=self.negative,
            latent_shape=tuple(latents[0].shape),
        )

    def _shapes(self) -> list[list[int]]:
        """The latents' shapes of a data set of version 1, from the headers of its shards."""
        return [
            self.shards[shard].get_slice(f"{position}.latents").get_shape()
            for shard, position in self.locations
        ]

    def _grouped(self, shapes: Sequence[Sequence[int]]) -> list[list[int]]:
        """The samples of each shape; ValueError where a batch would hold one of them twice."""
        by_shape: dict[tuple[int, ...], list[int]] = {}
        for index, shape in enumerate(shapes):
            by_shape.setdefault(tuple(shape), []).append(index)
        for shape, bucket in by_shape.items():
            if len(bucket) < self.settings.batch_size:
                _, num_frames, height, width = shape
                raise ValueError(
                    f"data.batch_size: {self.settings.batch_size} is more than the {len(bucket)} "
                    f"samples of {width * SPATIAL_STRIDE}x{height * SPATIAL_STRIDE} and "
                    f"{(num_frames - 1) * TEMPORAL_STRIDE + 1} frames; lower it or prepare more"
                )
        return list(by_shape.values())

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
        self.captions = training_captions()

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
            clip = render(caption, clip_seed, num_frames, size, size, frames)
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

    def __init__(self, config: TrainConfig[Any], settings: PromptData, codecs: Codecs):
        self.prompts = _read_prompts(settings.file)
        own = codecs.entry.preset
        self.buckets = settings.buckets or (
            Bucket(
                width=settings.width or own.width,
                height=settings.height or own.height,
                num_frames=settings.num_frames or own.num_frames,
            ),
        )
        self.batch_size = settings.batch_size
        self.order = BucketOrder([len(self.prompts)] * len(self.buckets), config.seed)
        self.num_channels = codecs.num_latent_channels
        self.encode = codecs.prompts.encode_prompt
        self.negative = self.encode([own.negative_prompt])

    def batch(self, step: int, stream: int, num_streams: int) -> Batch:
        """The prompts of one micro-batch: a bucket's epoch is one permutation of the file."""
        bucket = self.buckets[self.order.bucket(step)]
        batch_size = bucket.batch_size or self.batch_size
        positions = self.order.chosen(step, stream, num_streams, batch_size)
        chosen = [self.prompts[position] for position in positions]
        return Batch(
            prompts=tuple(chosen),
            prompt_embeds=self.encode(chosen),
            negative_prompt_embeds=self.negative,
            latent_shape=(
                self.num_channels,
                (bucket.num_frames - 1) // TEMPORAL_STRIDE + 1,
                bucket.height // SPATIAL_STRIDE,
                bucket.width // SPATIAL_STRIDE,
            ),
        )


def _read_prompts(file: Path) -> list[str]:
    if not file.is_file():
        raise ValueError(f"data.file: there is no file {file}")
    lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    prompts = [line for line in lines if line and not line.startswith("#")]
    if not prompts:
        raise ValueError(f"data.file: {file} holds no prompts; write one a line")
    return prompts


def build_data(config: TrainConfig[Any], codecs: Codecs) -> DataSource:
    """The source that the configuration names."""
    settings = config.data
    if isinstance(settings, PreparedData):
        return Prepared(settings, config.seed)
    if isinstance(settings, PromptData):
        return Prompts(config, settings, codecs)
    return RenderedShapes(settings, config.seed)
