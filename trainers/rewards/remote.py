"""A reward in an environment of its own, asked over HTTP: HPSv3, VideoAlign, anything at all.

Their pins clash with current transformers. `trainers/scoring/server.py` runs there, beside them:

    python reward_server.py my_scorer.py --port 8500

    request   POST /score   {"prompts": [...], "shape": [B, F, H, W, 3], "video": base64 of bytes}
    answer                  {"scores": [...]}              one finite number a video

A server that does not answer in time, refuses, or answers anything else stops the run with a
checkpoint. It has no gradient.
"""

import base64
import json
import urllib.error
import urllib.request

import torch
from pydantic import Field
from torch import Tensor

from pipelines.strict import Strict
from trainers.scoring.reward import Reward, RewardError

MAX_ANSWER_BYTES = 2**20


class Config(Strict):
    """Where it is."""

    url: str = Field(
        "http://127.0.0.1:8500/score", pattern=r"^https?://", description="Of the server."
    )
    timeout_sec: float = Field(120.0, gt=0, description="For one batch of videos.")


class RewardModel(Reward[Config]):
    """Whatever the server answers."""

    Config = Config

    def score(self, video: Tensor, prompts: tuple[str, ...]) -> Tensor:
        """video [B, F, 3, H, W] in [0, 1] -> [B]. RewardError where there is no such answer."""
        pixels = (video * 255).round().byte().permute(0, 1, 3, 4, 2).contiguous().cpu().numpy()
        question = {
            "prompts": prompts,
            "shape": pixels.shape,
            "video": base64.b64encode(pixels.tobytes()).decode(),
        }
        return self._read(self._ask(json.dumps(question).encode()))

    def _ask(self, body: bytes) -> bytes:
        url = self.config.url
        request = urllib.request.Request(
            url, data=body, headers={"Content-Type": "application/json"}, method="POST"
        )
        try:
            with urllib.request.urlopen(request, timeout=self.config.timeout_sec) as answer:
                read: bytes = answer.read(MAX_ANSWER_BYTES)
        except urllib.error.HTTPError as error:
            reason = error.read(300).decode(errors="replace")
            raise RewardError(f"the server at {url} refused ({error.code}: {reason})") from error
        except TimeoutError as error:
            waited = f"{self.config.timeout_sec:g} s"
            raise RewardError(f"the server at {url} has not answered within {waited}") from error
        except OSError as error:  # also a timeout while connecting
            raise RewardError(f"the server at {url} cannot be reached ({error})") from error
        return read

    def _read(self, answer: bytes) -> Tensor:
        try:
            scores = torch.tensor(json.loads(answer)["scores"], dtype=torch.float32)
        except (ValueError, KeyError, TypeError) as error:
            shown = answer[:100].decode(errors="replace")
            raise RewardError(f"the server at {self.config.url} answered {shown!r}") from error
        return scores
