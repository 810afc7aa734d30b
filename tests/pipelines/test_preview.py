"""The preview decoder against the published layout's arithmetic, on random weights."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from torch import Tensor

from pipelines.__main__ import main
from pipelines.catalog.registry import Registry
from pipelines.files.preview_decoder import check_preview_decoder
from pipelines.files.tensors import Header, pickle_shapes
from pipelines.generate import Clip, generate
from pipelines.model_cache import ModelCache
from pipelines.models.preview import load_preview_decoder
from pipelines.video import read_video
from tests.pipelines.conftest import Payload, write_preview_decoder


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_preview_decoder(tmp_path_factory.mktemp("preview") / "taew2_1.pth")


def reference(weights: dict[str, Tensor], latents: Tensor) -> Tensor:
    """The same layers on all frames at once. latents [F, 16, H, W] -> [4F-3, 3, 8H, 8W]."""

    def conv(index: str, frames: Tensor) -> Tensor:
        weight = weights[f"decoder.{index}.weight"].float()
        bias = weights.get(f"decoder.{index}.bias")
        return F.conv2d(frames, weight, bias if bias is None else bias.float(), padding="same")

    frames = conv("1", 3 * torch.tanh(latents / 3)).relu()
    for first, growth in ((3, 1), (9, 2), (15, 2)):
        for block in range(first, first + 3):
            past = F.pad(frames, (0, 0, 0, 0, 0, 0, 1, 0))[:-1]
            inner = conv(f"{block}.conv.0", torch.cat([frames, past], 1)).relu()
            inner = conv(f"{block}.conv.4", conv(f"{block}.conv.2", inner).relu())
            frames = (inner + frames).relu()
        frames = F.interpolate(frames, scale_factor=2, mode="nearest")
        num_channels = frames.shape[1]
        frames = conv(f"{first + 4}.conv", frames)
        frames = frames.reshape(-1, num_channels, *frames.shape[2:])
        assert len(frames) % growth == 0
        frames = conv(str(first + 5), frames)
    return conv("22", frames.relu())[3:].clamp(0, 1)


def test_frames_are_those_of_the_published_layers(file: Path) -> None:
    latents = 2 * torch.randn(1, 16, 3, 2, 4, generator=torch.Generator().manual_seed(1))
    video = load_preview_decoder(file, "cpu", torch.float32).decode(latents)
    weights = torch.load(file, weights_only=True)
    expected = reference(weights, latents[0].transpose(0, 1))
    assert video.shape == (1, 9, 3, 16, 32)
    assert float(expected.std()) > 0.05
    torch.testing.assert_close(video[0], expected, atol=1e-5, rtol=0)


def test_safetensors_and_pickles_give_the_same_decoder(file: Path, tmp_path: Path) -> None:
    other = write_preview_decoder(tmp_path / "taew2_1.safetensors")
    assert pickle_shapes(file) == Header(other).shapes
    one, two = (load_preview_decoder(f, "cpu", torch.float32) for f in (file, other))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_other_files_are_refused_in_one_sentence(file: Path, tmp_path: Path) -> None:
    weights = torch.load(file, weights_only=True)
    without = {name: w for name, w in weights.items() if name != "decoder.22.bias"}
    files = {
        "absent.pth": "does not exist",
        "taew2_1.onnx": "must be a .safetensors",
        "channels.pth": "latents of 48 channels, and Wan2.1's have 16",
        "missing.pth": "1 tensors do not fit, the first is decoder.22.bias",
        "more.pth": "1 tensors do not fit, the first is blocks.0.weight",
        "damaged.pth": "are damaged",
        "code.pth": "holds more than weights",
        "list.pth": "do not hold tensors by name",
    }
    (tmp_path / "taew2_1.onnx").write_bytes(b"x")
    write_preview_decoder(tmp_path / "channels.pth", num_channels=48)
    torch.save(without, tmp_path / "missing.pth")
    torch.save(weights | {"blocks.0.weight": torch.ones(1)}, tmp_path / "more.pth")
    (tmp_path / "damaged.pth").write_bytes(file.read_bytes()[:1000])
    marker = tmp_path / "ran"
    torch.save({"decoder.1.weight": Payload(marker)}, tmp_path / "code.pth")
    torch.save([torch.ones(1)], tmp_path / "list.pth")
    for name, message in files.items():
        with pytest.raises(ValueError, match=message) as refused:
            check_preview_decoder(tmp_path / name)
        assert "\n" not in str(refused.value)
    assert not marker.exists()


@pytest.fixture(scope="module")
def wan_latents(models_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with `mini`, whose VAE says that its latents are Wan's."""
    folder = tmp_path_factory.mktemp("wan-latents")
    copy = Path(shutil.copytree(models_dir / "mini", folder / "mini"))
    config = json.loads((copy / "vae" / "config.json").read_text())
    published = AutoencoderKLWan(base_dim=8, dim_mult=[1, 1], num_res_blocks=1).config
    config |= {name: list(published[name]) for name in ("latents_mean", "latents_std")}
    (copy / "vae" / "config.json").write_text(json.dumps(config))
    return folder


def test_generate_decodes_with_it_and_says_so(
    wan_latents: Path, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["generate", "--models", str(wan_latents), "--model", "mini", "--prompt", "a red"]
    for name, options in (("full", []), ("quick", ["--preview-decoder", str(file)])):
        assert main([*command, "--out", str(tmp_path / f"{name}.mp4"), *options]) == 0
    assert "note: Decoded by a preview decoder" in capsys.readouterr().err
    full, quick = (read_video(tmp_path / f"{name}.mp4") for name in ("full", "quick"))
    assert full.shape == quick.shape
    assert abs(full - quick).mean() > 0.01


def test_a_model_with_latents_of_its_own_is_refused(
    models_dir: Path, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["generate", "--models", str(models_dir), "--model", "mini", "--prompt", "a red"]
    out = ["--out", str(tmp_path / "clip.mp4"), "--preview-decoder", str(file)]
    assert main([*command, *out]) == 2
    assert "mini has another VAE" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("sampler", ["unipc", "euler", "lcm"])
def test_each_step_tells_what_it_takes_the_clean_latents_to_be(
    sampler: str, wan_latents: Path, models: ModelCache, tmp_path: Path
) -> None:
    registry = Registry([wan_latents])
    changes = {"name": sampler, "num_inference_steps": 3, "guidance_scale": 2.0}
    recipe = registry.recipe("mini", "a red", sampler=changes)
    own = ModelCache(registry, "cpu")
    *events, clip = generate(recipe, own, tmp_path / "clip.mp4")
    assert isinstance(clip, Clip)
    estimates = [event.estimate for event in events]
    assert [e.phase for e in events if e.estimate is not None] == ["denoise"] * 3
    last = [estimate for estimate in estimates if estimate is not None][-1]
    # The last step lands on the estimate, so the VAE makes the clip of it.
    components = own.components(recipe, registry.entry("mini"))
    shown = components.decode(last)[0].permute(0, 2, 3, 1).numpy()
    assert abs(read_video(clip.path) - shown).mean() < 0.02
    recipe = models.registry.recipe("mini", "a red", sampler={"num_inference_steps": 1})
    *events, _ = generate(recipe, models, tmp_path / "clip.mp4")
    assert all(event.estimate is None for event in events)
