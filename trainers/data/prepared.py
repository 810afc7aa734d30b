"""Prepared data on disk: encoded samples in sharded safetensors, and how they are read back.

    settings.json             what the data are made from and how; a restart must agree with it
    shard-00000.safetensors   "0.latents", "0.prompt_embeds", "1.latents"; header: captions
    negative.safetensors      "prompt_embeds" of the model's negative prompt
    index.json                written last: without it the data are not finished

A shard is written whole or not at all, and its contents follow from the settings and its number
alone. So whoever was killed goes on at the first shard that is missing, ranks need no messages
to share the work, and the result is the same for any number of them.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pipelines.files.disk import atomic_path
from pipelines.geometry import WAN21, Geometry

SETTINGS, INDEX, NEGATIVE = "settings.json", "index.json", "negative.safetensors"
VERSION = 3  # 1 had no shapes, 2 no names of tensors and no headers
FIRST_TENSORS = ("latents", "prompt_embeds")  # what every sample of versions 1 and 2 has
SAMPLES_PER_SHARD = 2048


@dataclass(frozen=True)
class PreparedSample:
    """One clip or prompt, encoded.

    `tensors` by name: `prompt_embeds` [L, D] unpadded; `latents` [C, F, h, w] unless it is a prompt
    alone; for image-to-video `image_latents` [C, F, h, w] and `image_embeds` [L, D]. `latent_shape`
    is (C, F, h, w), of the latents or of those to be made for the prompt; `origin` is for people.
    """

    caption: str
    latent_shape: tuple[int, ...]
    tensors: Mapping[str, Tensor]
    origin: Mapping[str, Any] = field(default_factory=dict)


def unpadded(prompt_embeds: Tensor) -> Tensor:
    """[L, D] -> [number of tokens, D] in half precision: the zero rows at the end are left out."""
    num_tokens = int(prompt_embeds.abs().sum(-1).count_nonzero())
    return prompt_embeds[:num_tokens].half().cpu()


def shard_path(folder: Path, number: int) -> Path:
    """Where a shard lies."""
    return folder / f"shard-{number:05d}.safetensors"


def begin(folder: Path, settings: Mapping[str, Any]) -> None:
    """Makes the folder for data with these settings (JSON), or returns to what was begun there.

    ValueError where the folder holds other data: nothing is ever mixed or overwritten.
    """
    path = folder / SETTINGS
    if not path.is_file():
        if (folder / INDEX).exists() or shard_path(folder, 0).exists():
            raise ValueError(f"out: {folder} holds other data; choose another folder or delete it")
        with atomic_path(path) as partial:
            partial.write_text(json.dumps(settings, indent=1))
    known, asked = json.loads(path.read_text()), json.loads(json.dumps(settings))
    if known != asked:
        changed = [name for name in {**known, **asked} if known.get(name) != asked.get(name)]
        raise ValueError(
            f"out: {folder} was begun with another {', '.join(changed)}; choose another folder or "
            "delete it"
        )


def has_shard(folder: Path, number: int) -> bool:
    """Whether a shard is there and whole."""
    try:
        with safe_open(shard_path(folder, number), "pt"):
            return True
    except (OSError, SafetensorError):
        return False


def write_shard(
    folder: Path, number: int, samples: Sequence[PreparedSample], problems: Sequence[Any] = ()
) -> None:
    """Writes one shard, atomically. `problems` (JSON) are of what should have been in it."""
    tensors = {
        f"{position}.{name}": tensor.contiguous()
        for position, sample in enumerate(samples)
        for name, tensor in sample.tensors.items()
    }
    about = [
        {"caption": s.caption, "latent_shape": s.latent_shape, "origin": s.origin} for s in samples
    ]
    header = {"samples": json.dumps(about), "problems": json.dumps(problems)}
    with atomic_path(shard_path(folder, number)) as partial:
        save_file(tensors, partial, header)


def summary(folder: Path, num_shards: int) -> tuple[int, list[Any]]:
    """The number of samples in all shards, and the shards' problems in order."""
    num_samples, problems = 0, []
    for number in range(num_shards):
        with safe_open(shard_path(folder, number), "pt") as shard:
            header = shard.metadata()
        num_samples += len(json.loads(header["samples"]))
        problems += json.loads(header["problems"])
    return num_samples, problems


def discard(folder: Path, num_shards: int) -> None:
    """Removes what was begun, so that the folder may be begun with other settings."""
    for number in range(num_shards):
        shard_path(folder, number).unlink(missing_ok=True)
    (folder / SETTINGS).unlink(missing_ok=True)


def finish(
    folder: Path,
    num_shards: int,
    negative_prompt_embeds: Tensor,
    text_length: int,
    geometry: Geometry = WAN21,
) -> None:
    """Writes what belongs to all shards, the index last.

    negative_prompt_embeds [L, D]; text_length is the L that the model reads, geometry the model's.
    """
    captions, shapes, counts = [], [], []
    names: set[str] = set()
    for number in range(num_shards):
        with safe_open(shard_path(folder, number), "pt") as shard:
            about = json.loads(shard.metadata()["samples"])
            names |= {key.partition(".")[2] for key in shard.keys()}  # noqa: SIM118
        captions += [sample["caption"] for sample in about]
        shapes += [sample["latent_shape"] for sample in about]
        counts.append(len(about))
    with atomic_path(folder / NEGATIVE) as partial:
        save_file({"prompt_embeds": negative_prompt_embeds.contiguous()}, partial)
    index = {"version": VERSION, "text_length": text_length, "tensors": sorted(names)}
    index |= {"shards": counts, "captions": captions, "shapes": shapes}
    index |= {"geometry": geometry.model_dump()}
    with atomic_path(folder / INDEX) as partial:
        partial.write_text(json.dumps(index))


class PreparedFolder:
    """Reads finished data of any version; shards are memory-mapped until the process ends.

    ValueError where the folder holds none, or is damaged, or newer than this program.
    """

    def __init__(self, folder: Path):
        if not (folder / INDEX).is_file():
            raise ValueError(f"data.folder: {folder} holds no finished data set; prepare one first")
        index = json.loads((folder / INDEX).read_text())
        if index["version"] > VERSION:
            raise ValueError(
                f"data.folder: {folder} was prepared by a newer version; update this one"
            )
        self.text_length: int = index["text_length"]
        self.captions: list[str] = index["captions"]
        self.names: list[str] = index.get("tensors", FIRST_TENSORS)
        self.geometry = Geometry.model_validate(index.get("geometry", {}))
        self.locations = [(s, i) for s, count in enumerate(index["shards"]) for i in range(count)]
        if not self.locations:
            raise ValueError(f"data.folder: {folder} holds no samples")
        files = ExitStack()  # closed with the process
        try:
            self.shards: list[Any] = [
                files.enter_context(safe_open(shard_path(folder, number), "pt"))
                for number in range(len(index["shards"]))
            ]
            negative = files.enter_context(safe_open(folder / NEGATIVE, "pt"))
        except (OSError, SafetensorError) as error:
            raise ValueError(
                f"data.folder: {folder} is damaged ({error}); prepare it again"
            ) from error
        self.negative_prompt_embeds: Tensor = negative.get_tensor("prompt_embeds")  # [L, D]
        self.latent_shapes: list[list[int]] = index.get("shapes") or self._shapes()

    def read(self, index: int) -> dict[str, Tensor]:
        """The tensors of one sample by name, as they were written."""
        shard, position = self.locations[index]
        return {name: self.shards[shard].get_tensor(f"{position}.{name}") for name in self.names}

    def origin(self, index: int) -> dict[str, Any]:
        """Where a sample comes from; empty where that was not written down."""
        shard, position = self.locations[index]
        header = self.shards[shard].metadata() or {}
        about: list[dict[str, Any]] = json.loads(header.get("samples", "[]"))
        return about[position]["origin"] if about else {}

    def _shapes(self) -> list[list[int]]:
        """The latents' shapes of data of version 1, from the headers of its shards."""
        return [
            self.shards[shard].get_slice(f"{position}.latents").get_shape()
            for shard, position in self.locations
        ]
