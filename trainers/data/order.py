"""Which samples a step sees, as functions of (seed, step): nothing to save or to broadcast."""

from collections.abc import Sequence

import numpy as np
import torch


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


class BucketOrder:
    """Which size bucket a step trains on, and which of its samples.

    All streams of a step get the same bucket, so that all ranks run the same forwards. A bucket
    with ten times the samples has ten times the turns.
    """

    def __init__(self, bucket_sizes: Sequence[int], seed: int):
        self.num_turns = [max(1, round(size / min(bucket_sizes))) for size in bucket_sizes]
        self.turns = [(b, turn) for b, count in enumerate(self.num_turns) for turn in range(count)]
        self.order = Order(len(self.turns), seed)
        self.samples = [Order(size, seed + bucket) for bucket, size in enumerate(bucket_sizes)]

    def bucket(self, step: int) -> int:
        """The bucket of a step."""
        return self.turns[self.order.index(step)][0]

    def chosen(self, step: int, stream: int, num_streams: int, batch_size: int) -> list[int]:
        """The samples, within the step's bucket, of one micro-batch."""
        bucket, turn = self.turns[self.order.index(step)]
        num_before = step // len(self.turns) * self.num_turns[bucket] + turn  # turns it has had
        first = (num_before * num_streams + stream) * batch_size
        return [self.samples[bucket].index(first + i) for i in range(batch_size)]
