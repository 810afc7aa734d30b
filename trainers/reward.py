"""What a reward is: a video and its prompt in, a number out. One file each in trainers/rewards/.

A reward's file holds a class `RewardModel` with the method below, and imports nothing else of ours.
"""

from typing import Protocol

import torch
from torch import Tensor

from pipelines.loading import VideoCodec


class Reward(Protocol):
    """How good a video is for its prompt; higher is better."""

    def score(self, video: Tensor, prompts: tuple[str, ...]) -> Tensor:
        """video [B, F, C, H, W] in [0, 1] -> [B] fp32, without a gradient."""


class LatentScore:
    """A reward for latents: decodes them first."""

    def __init__(self, reward: Reward, codec: VideoCodec):
        self.reward, self.codec = reward, codec

    @torch.no_grad()
    def __call__(self, latents: Tensor, prompts: tuple[str, ...]) -> Tensor:
        """latents [B, C, F, H, W] -> [B], where the latents lie."""
        with torch.autocast(latents.device.type, enabled=False):  # the VAE is fp32
            video = self.codec.decode(latents)
        return self.reward.score(video, prompts).to(latents.device)
