"""The encoder of data: from an item of a source to samples, by the VAE and the text encoder."""

import os
from collections.abc import Iterator
from pathlib import Path

import av
import torch
from PIL import Image
from torch import Tensor

from pipelines.catalog.entries import ModelEntry
from pipelines.files.disk import fingerprint
from pipelines.files.layouts import text_encoder_path, tokenizer_path, vae_path
from pipelines.models.loading import pick_device
from trainers.data.prepared import PreparedSample, unpadded
from trainers.networks.models import Codecs
from trainers.prepare import fastvideo
from trainers.prepare.cut import Cut, cut_clips
from trainers.settings.prepare import PrepareSettings
from trainers.sources.inspect import probe
from trainers.sources.listing import Item


def local_device(name: str | None) -> str:
    """The device of this rank: the named one, else its own GPU, else the CPU."""
    device = pick_device(name)
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if device == "cuda" else device


class Encoder:
    """One model's encoders at work. `settings` are complete; ValueError where it is not here."""

    def __init__(self, settings: PrepareSettings, entry: ModelEntry, device: str):
        self.settings, self.codecs, self.preset = settings, Codecs(entry, device), entry.preset

    def identity(self) -> dict[str, str]:
        """What changes when other weights would encode otherwise."""
        folder = self.codecs.folder
        parts = {"VAE": vae_path(folder), "text encoder": text_encoder_path(folder)}
        parts |= {"tokenizer": tokenizer_path(folder)}
        return {part: fingerprint(path) for part, path in parts.items()}

    def negative_prompt_embeds(self) -> Tensor:
        """[L, D] of the model's own negative prompt."""
        return self.codecs.prompts.encode_prompt([self.preset.negative_prompt])[0].cpu()

    def samples(self, item: Item) -> tuple[list[PreparedSample], str]:
        """What an item gives, and in a few words what is wrong with it, or nothing."""
        if item.file is None:
            return [self._prompt(item.caption)], ""
        if item.file.suffix == ".parquet":
            return fastvideo.read_samples(item.file, self.codecs.video)
        problem = probe(item, self.settings.clips).problem
        if problem:
            return [], problem
        found: list[PreparedSample] = []
        try:
            for sample in self._clips(item.file, item):
                found.append(sample)
        except av.error.FFmpegError as error:  # what came before the damage is good
            return found, f"it is damaged ({error.strerror})"
        return found, "" if found else f"no scene has {self.settings.frames} frames"

    def _prompt(self, prompt: str) -> PreparedSample:
        """A prompt alone, for latents of the size that was asked for."""
        width, height = self.settings.sizes[0]
        assert self.settings.frames is not None
        shape = self.preset.geometry.latent_shape(width, height, self.settings.frames)
        return PreparedSample(prompt, shape, {"prompt_embeds": self._embed(prompt)})

    def _clips(self, file: Path, item: Item) -> Iterator[PreparedSample]:
        wanted = self.settings.clips
        size = probe(item, wanted).size
        assert size is not None
        prompt_embeds = self._embed(item.caption)
        for clip in cut_clips(file, size, wanted):
            tensors = self._encode(clip) | {"prompt_embeds": prompt_embeds.clone()}
            origin = {"file": str(file), "start_sec": round(clip.start_sec, 3)}
            yield PreparedSample(item.caption, tuple(tensors["latents"].shape), tensors, origin)

    def _encode(self, clip: Cut) -> dict[str, Tensor]:
        """`latents`; and for models that continue images `image_latents` and `image_embeds`.

        In half precision: its rounding is far below any noise level.
        """
        video = torch.from_numpy(clip.frames).permute(0, 3, 1, 2)[None] / 255
        tensors = {"latents": self.codecs.video.encode(video)}
        if self.preset.takes_image:
            num_frames, height, width, _ = clip.frames.shape
            image = Image.fromarray(clip.frames[0])
            condition = self.codecs.images.condition_of(image, width, height, num_frames)
            tensors["image_latents"] = condition.image_latents
            if condition.image_embeds is not None:
                tensors["image_embeds"] = condition.image_embeds
        return {name: tensor[0].half().cpu() for name, tensor in tensors.items()}

    def _embed(self, prompt: str) -> Tensor:
        return unpadded(self.codecs.prompts.encode_prompt([prompt])[0])
