"""Previews of a clip in the making: how often, and what must not stop the clip."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from pipelines.models.preview import PreviewDecoder, load_preview_decoder
from studio.clips import live_preview
from studio.clips.live_preview import Previews, preview_name, preview_path
from tests.pipelines.conftest import write_preview_decoder

WIDE = 9 * torch.randn(
    1, 16, 2, 4, 106, generator=torch.Generator().manual_seed(0)
)  # 848 pixels wide


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_preview, "MIN_PAUSE_SEC", 0.0)


def test_a_preview_is_small_moves_and_waits_nine_times_as_long_as_it_took(tmp_path: Path) -> None:
    path = preview_path(tmp_path, "key")
    file = write_preview_decoder(tmp_path / "taew2_1.pth")
    drawn = Previews(load_preview_decoder(file, "cpu", torch.float32), path, fps=16)
    assert preview_name(tmp_path, "key") is None
    drawn.offer(WIDE)
    with Image.open(path) as picture:
        assert (picture.format, picture.n_frames, picture.size) == ("WEBP", 2, (282, 10))
        picture.load()
        assert picture.info["duration"] == 250  # each stands for four frames
    first = preview_name(tmp_path, "key")
    assert first is not None
    assert first.startswith("previews/key.webp?")
    drawn.offer(WIDE)
    assert preview_name(tmp_path, "key") == first


class Failing(PreviewDecoder):
    """Ends as a full device does."""

    calls = 0

    def decode(self, latents: Tensor) -> Tensor:
        self.calls += 1
        raise torch.OutOfMemoryError("full")


def test_a_full_device_ends_the_previews_and_not_the_clip(tmp_path: Path) -> None:
    decoder = Failing()
    drawn = Previews(decoder, preview_path(tmp_path, "key"), fps=16)
    for _ in range(2):
        drawn.offer(WIDE)
    assert decoder.calls == 1
    assert preview_name(tmp_path, "key") is None
