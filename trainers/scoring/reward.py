"""What a reward is: a video and its prompt in, a number out. One file each in trainers/rewards/.

A reward's file holds its `Config` and a class `RewardModel`.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Generic, TypeVar

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pipelines.strict import Strict
from trainers.ranks.ranks import Ranks, any_rank
from trainers.settings.reward import NUM_RANDOM_FRAMES, Frames, RewardChoice

TRAINED, HELD_OUT = "reward", "held_out_reward"  # of a run, their names among figures


class NoSettings(Strict):
    """The settings of a reward that has none."""


class RewardError(ValueError):
    """A reward did not answer, or not with one finite number a video. The run stops and keeps."""


ConfigT = TypeVar("ConfigT", bound=Strict)


class Reward(ABC, Generic[ConfigT]):
    """How good a video is for its prompt; higher is better."""

    Config: ClassVar[type[Strict]] = NoSettings
    frames: ClassVar[Frames] = "all"  # what it sees where the configuration does not say
    needs_motion: ClassVar[bool] = False  # single frames would mean nothing to it
    differentiable: bool = False  # whether the score has a gradient by the video

    def __init__(self, config: ConfigT, device: torch.device):
        """`config` is an instance of the file's `Config`. ValueError where weights are missing."""
        self.config, self.device = config, device
        self.load()

    def load(self) -> None:
        """Loads the weights, where it has some."""

    @abstractmethod
    def score(self, video: Tensor, prompts: tuple[str, ...]) -> Tensor:
        """video [B, F, C, H, W] in [0, 1], B prompts -> [B] fp32."""


class LatentScore:
    """A reward for latents: decodes as much of them as it sees."""

    def __init__(
        self, reward: Reward[Any], choice: RewardChoice, vae: AutoencoderKLWan, ranks: Ranks
    ):
        self.reward, self.choice, self.vae, self.ranks = reward, choice, vae, ranks
        self.frames: Frames = choice.frames or reward.frames
        if reward.needs_motion and self.frames != "all":
            raise ValueError(
                f"reward.frames is {self.frames} but {choice.kind} looks at motion; set it to all"
            )

    @property
    def differentiable(self) -> bool:
        """Whether the score has a gradient by the latents."""
        return self.reward.differentiable

    def __call__(self, latents: Tensor, prompts: tuple[str, ...]) -> Tensor:
        """latents [B, C, F, H, W] -> [B] fp32, where the latents lie.

        With a gradient where there is one and it is asked for. RewardError, on every rank, where
        one rank's reward did not answer with B finite numbers.
        """
        with (
            torch.set_grad_enabled(torch.is_grad_enabled() and self.differentiable),
            torch.autocast(latents.device.type, enabled=False),  # the VAE is fp32
        ):
            return self._answer(self._decode(latents), prompts)

    @torch.no_grad()
    def of_video(self, video: Tensor, prompts: tuple[str, ...]) -> Tensor:
        """As a call with the latents of `video` [B, F, 3, H, W], without a gradient. [B]."""
        return self._answer(self._seen(video), prompts)

    def _answer(self, seen: Tensor, prompts: tuple[str, ...]) -> Tensor:
        scores, problem = self._ask(seen, prompts)
        if any_rank(problem is not None, self.ranks):
            raise RewardError(f"reward: {problem or 'another rank had no answer'}")
        return scores.to(seen.device)

    def _ask(self, video: Tensor, prompts: tuple[str, ...]) -> tuple[Tensor, str | None]:
        """The scores, and in a sentence what is wrong with them."""
        kind, nothing = self.choice.kind, video.new_zeros(len(prompts))
        try:
            scores = self.reward.score(video, prompts)
        except RewardError as error:
            return nothing, str(error)
        if scores.shape != (len(prompts),):
            shape = list(scores.shape)
            return nothing, f"{kind} answered {shape} numbers for {len(prompts)} videos; correct it"
        wrong = (~scores.isfinite()).nonzero().flatten().tolist()
        if wrong:
            return nothing, (
                f"{kind} answered {float(scores[wrong[0]])} for {len(wrong)} of {len(prompts)} "
                f"videos, the first of {prompts[wrong[0]]!r}; correct it"
            )
        return scores, None

    def _decode(self, latents: Tensor) -> Tensor:
        """What the reward sees. [B, F, 3, H, W] in [0, 1]."""
        if self.frames == "first":
            return decode_first_frame(self.vae, latents)
        return self._seen(decode_clip(self.vae, latents))

    def _seen(self, video: Tensor) -> Tensor:
        """The frames of a whole clip that the reward sees."""
        if self.frames != "random":
            return video[:, :1] if self.frames == "first" else video
        wanted = min(self.choice.num_random_frames or NUM_RANDOM_FRAMES, video.shape[1])
        chosen = torch.randperm(video.shape[1])[:wanted].sort().values
        return video[:, chosen.to(video.device)]


def decode_clip(vae: AutoencoderKLWan, latents: Tensor) -> Tensor:
    """Normalised latents [B, C, F, H, W] -> video [B, 4F-3, 3, 8H, 8W] fp32 in [0, 1]."""
    decoded = vae.decode(_denormalised(vae, latents), return_dict=False)[0]
    return _pixels(decoded)


def decode_first_frame(vae: AutoencoderKLWan, latents: Tensor) -> Tensor:
    """The first frame of `decode_clip` alone. [B, C, F, H, W] -> [B, 1, 3, 8H, 8W]."""
    first = _denormalised(vae, latents[:, :, :1])
    decoded: Tensor = checkpoint(_decode_alone, vae, first, use_reentrant=False)
    return _pixels(decoded.clamp(-1, 1))


def _decode_alone(vae: AutoencoderKLWan, first: Tensor) -> Tensor:
    frame: Tensor = vae.decoder(vae.post_quant_conv(first), first_chunk=True)
    patch_size = vae.config.patch_size
    return frame if patch_size is None else unpatchify(frame, patch_size=patch_size)


def _denormalised(vae: AutoencoderKLWan, latents: Tensor) -> Tensor:
    shape = (1, -1, 1, 1, 1)
    mean = torch.tensor(vae.config.latents_mean, device=latents.device).view(shape)
    std = torch.tensor(vae.config.latents_std, device=latents.device).view(shape)
    return latents.float() * std + mean


def _pixels(decoded: Tensor) -> Tensor:
    return (decoded / 2 + 0.5).transpose(1, 2)
