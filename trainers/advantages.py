"""Rewards compared within groups of videos of one prompt, so that hard prompts do not count."""

from torch import Tensor

EPSILON = 1e-4


def group_advantages(rewards: Tensor, group_size: int) -> Tensor:
    """(reward - mean of its group) / standard deviation over all groups. [N * G] -> [N * G].

    A group's copies lie together and sum to zero. The spread is that of the batch: a group whose
    videos are nearly alike must not count as much as one that differs.
    """
    groups = rewards.view(-1, group_size)
    centred = groups - groups.mean(1, keepdim=True)
    spread = centred.square().mean().sqrt()
    return (centred / (spread + EPSILON)).flatten()
