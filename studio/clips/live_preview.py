"""Previews of a clip that is being made: small moving pictures for its tile.

A worker draws one of what the last step took the clean latents to be; it lies in `previews/` and
goes when the job ends.
"""

import logging
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from pipelines.files.disk import atomic_path
from pipelines.geometry import WAN21

if TYPE_CHECKING:  # imports torch, which the web process must never do
    from torch import Tensor

    from pipelines.models.preview import PreviewDecoder

MIN_PAUSE_SEC = 2.0
PAUSE = 9  # times what a preview took: so at most a tenth of the time goes to previews
MAX_WIDTH = 416  # pixels
QUALITY = 70
STRIDE = WAN21.temporal_stride  # preview decoders are of its latents

log = logging.getLogger(__name__)


def preview_path(data: Path, key: str) -> Path:
    """Where the preview of a clip lies while it is being made."""
    return data / "previews" / f"{key}.webp"


def preview_name(data: Path, key: str) -> str | None:
    """The preview below `data`, with its time so that a browser fetches a new one; None without."""
    path = preview_path(data, key)
    try:
        return f"previews/{path.name}?{path.stat().st_mtime_ns}"
    except FileNotFoundError:
        return None


class Previews:
    """The previews of one clip; each replaces the one before."""

    def __init__(self, decoder: "PreviewDecoder", path: Path, fps: int):
        self._decoder, self._path, self._fps = decoder, path, fps
        self._next_sec = time.monotonic() + MIN_PAUSE_SEC

    def offer(self, estimate: "Tensor") -> None:
        """Draws what the clean latents [1, C, F, H, W] look like, if it is time for a new one."""
        from torch import OutOfMemoryError

        began_sec = time.monotonic()
        if began_sec < self._next_sec:
            return
        try:
            self._draw(estimate)
        except (OutOfMemoryError, OSError) as error:  # the clip goes on without
            log.warning("no more previews of %s: %s", self._path.stem, error)
            self._next_sec = math.inf
            return
        now_sec = time.monotonic()
        self._next_sec = now_sec + max(MIN_PAUSE_SEC, PAUSE * (now_sec - began_sec))

    def _draw(self, estimate: "Tensor") -> None:
        from torch.nn.functional import avg_pool2d

        frames = self._decoder.decode(estimate)[0, ::STRIDE]  # one for each latent frame
        factor = -(-frames.shape[-1] // MAX_WIDTH)
        small = avg_pool2d(frames, factor).mul(255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        first, *others = [Image.fromarray(frame) for frame in small]
        pause_ms = round(1000 * STRIDE / self._fps)
        with atomic_path(self._path) as temporary:
            first.save(
                temporary, save_all=True, append_images=others, duration=pause_ms, loop=0,
                quality=QUALITY,
            )  # fmt: skip
