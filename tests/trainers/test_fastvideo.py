"""FastVideo's .parquet files as a source."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.models.loading import load_video_codec
from tests.trainers.videos import problems
from trainers.__main__ import main
from trainers.data.prepared import PreparedFolder


def row(caption: str, latents: torch.Tensor | None) -> dict[str, Any]:
    """One row as FastVideo writes it; its embedding ends with the prompt."""
    embedding = torch.full((3, 16), 0.5)
    found = {"id": caption, "caption": caption, "fps": 16.0, "vae_latent_shape": []}
    for name, tensor in {"vae_latent": latents, "text_embedding": embedding}.items():
        if tensor is not None:
            found[f"{name}_bytes"] = tensor.numpy().tobytes()
            found[f"{name}_shape"] = list(tensor.shape)
            found[f"{name}_dtype"] = "float32"
    return found


def prepare(source: Path, out: Path, model: Path, *options: str) -> int:
    return main(["prepare", str(source), str(out), "--model", str(model), *options])


def test_its_samples_come_with_their_latents_normalised(tmp_path: Path, whole_model: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    (tmp_path / "in").mkdir()
    latents = torch.randn(16, 2, 4, 6)
    rows = [row("a cat", latents), row("a dog", None)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "in" / "0.parquet")
    (tmp_path / "in" / "1.parquet").write_text("none")
    assert prepare(tmp_path / "in", tmp_path / "out", whole_model) == 0
    stored = PreparedFolder(tmp_path / "out")
    assert stored.captions == ["a cat"]
    normalised = load_video_codec(whole_model, "cpu").normalise(latents[None])[0]
    torch.testing.assert_close(stored.read(0)["latents"], normalised.half())
    assert stored.read(0)["prompt_embeds"].shape == (3, 16)
    found = problems(tmp_path / "out")
    assert found["0.parquet"] == "1 of its rows have no latents"
    assert found["1.parquet"].startswith("it is damaged")


def test_without_pyarrow_it_says_what_to_install(
    tmp_path: Path, whole_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)  # as if it were not installed
    (tmp_path / "0.parquet").touch()
    assert prepare(tmp_path, tmp_path / "out", whole_model) == 2
    assert "run `pip install pyarrow`" in capsys.readouterr().err


def test_settings_of_videos_are_refused(tmp_path: Path, whole_model: Path, capsys: Any) -> None:
    (tmp_path / "0.parquet").touch()
    assert prepare(tmp_path, tmp_path / "out", whole_model, "--size", "32x32") == 2
    assert "size: it means nothing for encoded samples" in capsys.readouterr().err
