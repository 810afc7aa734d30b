"""The share of a caption's slots that hold, read by the exact checker of the shapes world."""

import torch
from torch import Tensor

from trainers.scoring.reward import NoSettings, Reward
from trainers.worlds.checker import observe
from trainers.worlds.shapes import Caption


class RewardModel(Reward[NoSettings]):
    """0 where no slot holds, 1 where all five do. A black box: it has no gradient."""

    needs_motion = True

    def score(self, video: Tensor, prompts: tuple[str, ...]) -> Tensor:
        """video [B, F, C, H, W] in [0, 1] -> [B]. ValueError for a prompt outside the grammar."""
        clips = video.permute(0, 1, 3, 4, 2).cpu().numpy()
        shares = []
        for clip, prompt in zip(clips, prompts, strict=True):
            matches = observe(clip).matches(Caption.parse(prompt))
            shares.append(sum(matches.values()) / len(matches))
        return torch.tensor(shares)
