"""The sources of batches. Which samples a batch holds is a function of (seed, step, stream) alone.

A stream is one micro-batch of one rank: `micro * num_ranks + rank`. Two ranks with one micro-batch
each therefore see exactly what one rank sees with two.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from pipelines.geometry import Geometry
from pipelines.sampling.first_frame import ImageCondition, join
from pipelines.sampling.prompt import Prompt
from trainers.algorithm import Batch
from trainers.data.order import BucketOrder, stream_seed
from trainers.data.prepared import PreparedFolder
from trainers.data.prompts import IMAGES_SUFFIX, ListedPrompt, read_prompts
from trainers.networks.models import Codecs
from trainers.settings.data import Bucket, PreparedData, PromptData, ShapesData, Stage
from trainers.settings.run import TrainConfig
from trainers.worlds.shapes import render, training_captions


class DataSource(Protocol):
    """step and stream -> Batch."""

    def batch(self, step: int, stream: int, num_streams: int) -> Batch: ...


class Prepared:
    """Samples of a prepared folder. Equal shapes form a bucket.

    With `images`, for models that continue one, a batch has them; else they are not read.
    """

    def __init__(self, settings: PreparedData, seed: int, images: bool = False):
        self.settings, self.images = settings, images
        self.files = PreparedFolder(settings.folder)
        if images and "image_latents" not in self.files.names:
            raise ValueError(
                f"data.folder: {settings.folder} was prepared without first frames, which this "
                "model continues; prepare it again with the model"
            )
        self.negative = self._pad(self.files.negative_prompt_embeds)[None]
        self.buckets = self._grouped(self.files.latent_shapes)
        self.order = BucketOrder([len(bucket) for bucket in self.buckets], seed)

    def batch(self, step: int, stream: int, num_streams: int) -> Batch:
        """The samples of one micro-batch: an epoch is one permutation of the bucket."""
        bucket = self.buckets[self.order.bucket(step)]
        positions = self.order.chosen(step, stream, num_streams, self.settings.batch_size)
        chosen = [bucket[position] for position in positions]
        samples = [self.files.read(index) for index in chosen]
        latents = [sample["latents"].float() for sample in samples if "latents" in sample]
        return Batch(
            prompts=tuple(self.files.captions[index] for index in chosen),
            latents=torch.stack(latents) if latents else None,
            prompt=Prompt(
                torch.stack([self._pad(sample["prompt_embeds"]) for sample in samples]),
                image=join([_condition(sample) for sample in samples]) if self.images else None,
            ),
            negative_embeds=self.negative,
            latent_shape=tuple(self.files.latent_shapes[chosen[0]]),
        )

    def _grouped(self, shapes: Sequence[Sequence[int]]) -> list[list[int]]:
        """The samples of each shape; ValueError where a batch would hold one of them twice."""
        by_shape: dict[tuple[int, ...], list[int]] = {}
        for index, shape in enumerate(shapes):
            by_shape.setdefault(tuple(shape), []).append(index)
        for shape, bucket in by_shape.items():
            if len(bucket) < self.settings.batch_size:
                width, height, num_frames = self.files.geometry.video_size(shape)
                raise ValueError(
                    f"data.batch_size: {self.settings.batch_size} is more than the {len(bucket)} "
                    f"samples of {width}x{height} and {num_frames} frames; lower it or prepare more"
                )
        return list(by_shape.values())

    def _pad(self, prompt_embeds: Tensor) -> Tensor:
        """[L, D] -> [text_length, D] fp32 with zero rows: what Wan was trained with, unmasked."""
        missing = self.files.text_length - prompt_embeds.shape[0]
        return torch.nn.functional.pad(prompt_embeds.float(), (0, 0, 0, missing))


def _condition(sample: Mapping[str, Tensor]) -> ImageCondition:
    """The first frame of one prepared sample, as a batch of one."""
    embeds = sample.get("image_embeds")
    return ImageCondition(
        sample["image_latents"][None].float(), None if embeds is None else embeds[None].float()
    )


class RenderedShapes:
    """Clips of the shapes world around the moving shape, by the curriculum in `stages`."""

    def __init__(self, settings: ShapesData, seed: int, geometry: Geometry):
        self.settings, self.seed, self.geometry = settings, seed, geometry
        self.captions = training_captions()

    def batch(self, step: int, stream: int, num_streams: int) -> Batch:
        """Freshly drawn clips; no two micro-batches share one."""
        stages = self.settings.stages
        stage = next((s for s in stages if step < s.until_step), stages[-1])
        rng = np.random.default_rng(stream_seed(self.seed, step, stream))
        captions, clips = zip(*self._clips(stage, rng), strict=True)
        video = torch.from_numpy(np.stack(clips)).permute(0, 1, 4, 2, 3)
        _, num_frames, _, height, width = video.shape
        shape = self.geometry.latent_shape(width, height, num_frames)
        return Batch(prompts=captions, video=video, latent_shape=shape)

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
    """Prompts, with first frames where the model continues images: data-free distillation.

    Both are encoded at every use; a long run over images is faster with prepared data.
    """

    def __init__(self, config: TrainConfig[Any], settings: PromptData, codecs: Codecs):
        own = codecs.entry.preset
        self.prompts = read_prompts(settings.file)
        self.images = codecs.images if own.takes_image else None
        with_images = settings.file.suffix == IMAGES_SUFFIX
        if with_images != own.takes_image:
            wanted = IMAGES_SUFFIX if own.takes_image else ".txt"
            reads = "an image with" if own.takes_image else "nothing but"
            raise ValueError(
                f"data.file: {own.name} reads {reads} each prompt; name a {wanted} file for it"
            )
        self.buckets = settings.buckets or (
            Bucket(
                width=settings.width or own.width,
                height=settings.height or own.height,
                num_frames=settings.num_frames or own.num_frames,
            ),
        )
        self.geometry = own.geometry
        for bucket in self.buckets:
            if problem := own.geometry.problem(bucket.width, bucket.height, bucket.num_frames):
                raise ValueError(f"data: {problem}")
        self.batch_size = settings.batch_size
        self.order = BucketOrder([len(self.prompts)] * len(self.buckets), config.seed)
        self.encode = codecs.prompts.encode_prompt
        self.negative = self.encode([own.negative_prompt])

    def batch(self, step: int, stream: int, num_streams: int) -> Batch:
        """The prompts of one micro-batch: a bucket's epoch is one permutation of the file."""
        bucket = self.buckets[self.order.bucket(step)]
        batch_size = bucket.batch_size or self.batch_size
        positions = self.order.chosen(step, stream, num_streams, batch_size)
        chosen = [self.prompts[position] for position in positions]
        texts = [prompt.text for prompt in chosen]
        return Batch(
            prompts=tuple(texts),
            prompt=Prompt(self.encode(texts), image=self._condition(chosen, bucket)),
            negative_embeds=self.negative,
            latent_shape=self.geometry.latent_shape(bucket.width, bucket.height, bucket.num_frames),
        )

    def _condition(self, chosen: Sequence[ListedPrompt], bucket: Bucket) -> ImageCondition | None:
        """The first frames of the chosen prompts, in the bucket's size."""
        if self.images is None:
            return None
        size = (bucket.width, bucket.height, bucket.num_frames)
        paths = [prompt.image for prompt in chosen if prompt.image is not None]
        return join([self.images.condition(path, *size) for path in paths])


def build_data(config: TrainConfig[Any], codecs: Codecs) -> DataSource:
    """The source that the configuration names."""
    settings = config.data
    if isinstance(settings, PreparedData):
        return Prepared(settings, config.seed, codecs.entry.preset.takes_image)
    if isinstance(settings, PromptData):
        return Prompts(config, settings, codecs)
    return RenderedShapes(settings, config.seed, codecs.entry.preset.geometry)
