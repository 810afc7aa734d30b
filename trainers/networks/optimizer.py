"""AdamW for one role, and its learning rate as a function of the step."""

import math
from collections.abc import Iterable

import torch
from torch import nn

from trainers.settings.roles import Trainable


def learning_rate(settings: Trainable, step: int, num_steps: int) -> float:
    """Linear warm-up, then constant or half a cosine down to `final_learning_rate`.

    A function of the step alone.
    """
    warmup = min(1.0, (step + 1) / (settings.warmup_steps + 1))
    peak, final = settings.learning_rate, settings.final_learning_rate
    if final is None:
        return warmup * peak
    return warmup * (final + (peak - final) * 0.5 * (1 + math.cos(math.pi * step / num_steps)))


def adamw(settings: Trainable, parameters: Iterable[nn.Parameter]) -> torch.optim.AdamW:
    """The optimizer that a role's settings describe."""
    return torch.optim.AdamW(
        parameters,
        lr=settings.learning_rate,
        betas=settings.betas,
        weight_decay=settings.weight_decay,
    )
