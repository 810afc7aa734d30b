"""Prepared data of samples that are at hand."""

from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from torch import Tensor

from trainers.data.prepared import INDEX, SAMPLES_PER_SHARD, PreparedSample, finish, write_shard


def write_prepared(
    folder: Path,
    samples: Iterable[PreparedSample],
    negative_prompt_embeds: Tensor,
    text_length: int,
    samples_per_shard: int = SAMPLES_PER_SHARD,
) -> None:
    """Writes samples that are at hand, in one go, over what was there."""
    (folder / INDEX).unlink(missing_ok=True)
    remaining, num_shards = iter(samples), 0
    while chunk := list(islice(remaining, samples_per_shard)):
        write_shard(folder, num_shards, chunk)
        num_shards += 1
    finish(folder, num_shards, negative_prompt_embeds, text_length)
