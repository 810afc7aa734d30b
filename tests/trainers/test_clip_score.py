"""The code path of HPS on a small CLIP: layouts, preprocessing, gradients, refusals."""

import hashlib
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch

from trainers.registry import load_reward
from trainers.rewards import aesthetic, hps
from trainers.scoring.clip import ClipScorer, prepare
from trainers.scoring.reward import LatentScore
from trainers.settings.reward import RewardChoice

CPU = torch.device("cpu")
SMALL = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"width": 32, "heads": 2, "layers": 1},
}


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small architecture under the name ViT-H-14, and its weights as HPSv2.1 publishes them."""
    configs: Any = open_clip.factory._MODEL_CONFIGS
    monkeypatch.setitem(configs, "ViT-H-14", SMALL)
    torch.manual_seed(0)
    model = open_clip.create_model("ViT-H-14")
    path = tmp_path / "HPS_v2.1_compressed.pt"
    torch.save({"state_dict": model.half().state_dict(), "epoch": 3}, path)
    digest = hashlib.md5(path.read_bytes()).hexdigest()
    monkeypatch.setitem(hps.FILES, "v2.1", (path.name, digest))
    return tmp_path


def load(folder: Path, **settings: Any) -> Any:
    choice = RewardChoice(kind="hps", settings={"folder": str(folder)} | settings)
    return load_reward(choice, CPU)


def test_hps_is_the_cosine_of_open_clips_own_features(published: Path) -> None:
    reward = load(published)
    video = torch.rand(2, 1, 3, 32, 32)
    model = reward.scorer.model
    with torch.no_grad():
        images = model.encode_image(prepare(video[:, 0], 32, "pad"), normalize=True)
        texts = model.encode_text(open_clip.get_tokenizer("ViT-H-14")(["a fox"]), normalize=True)
    found = reward.score(video, ("a fox", "a fox"))
    torch.testing.assert_close(found, (images @ texts.T)[:, 0])
    assert found.dtype == torch.float32


def test_pad_keeps_proportions_on_black_and_squash_fills_the_square() -> None:
    wide = torch.ones(1, 3, 16, 32)
    padded, squashed = (prepare(wide, 8, fit)[0, 0] for fit in ("pad", "squash"))
    white, black = squashed[0, 0], padded[0, 0]
    assert white > black + 1
    torch.testing.assert_close(padded[2:6], white.expand(4, 8))
    torch.testing.assert_close(squashed, white.expand(8, 8))
    assert (padded[:2] == black).all()
    assert (padded[6:] == black).all()


def test_the_gradient_reaches_the_latents_through_one_decoded_frame(
    published: Path, whole_model: Path
) -> None:
    from diffusers import AutoencoderKLWan

    from tests.trainers.runs import ONE

    vae = AutoencoderKLWan.from_pretrained(whole_model, subfolder="vae").requires_grad_(False)
    choice = RewardChoice(kind="hps", settings={"folder": str(published)})
    score = LatentScore(load_reward(choice, CPU), choice, vae, ONE)
    latents = torch.randn(2, vae.config.z_dim, 2, 4, 4, requires_grad=True)
    score(latents, ("a fox", "a hare")).sum().backward()
    assert latents.grad is not None
    assert latents.grad[:, :, 0].abs().max() > 0
    assert latents.grad[:, :, 1:].abs().max() == 0


def test_keeping_blocks_or_running_them_again_gives_one_gradient(published: Path) -> None:
    gradients = []
    for checkpointing in (True, False):
        reward = load(published)
        reward.scorer.model.set_grad_checkpointing(checkpointing)
        video = torch.rand(1, 1, 3, 40, 32, generator=torch.Generator().manual_seed(1))
        video.requires_grad_()
        reward.score(video, ("a fox",)).sum().backward()
        gradients.append(video.grad)
    torch.testing.assert_close(*gradients)


def test_a_missing_file_is_asked_for_in_words(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"HPS_v2\.1_compressed\.pt \(about 2 GB\) of xswu/HPSv2"):
        load(tmp_path)
    choice = RewardChoice(kind="pickscore", settings={"folder": str(tmp_path)})
    with pytest.raises(ValueError, match=r"PickScore_v1 \(about 4 GB\)"):
        load_reward(choice, CPU)


def test_a_file_that_is_not_the_published_one_is_refused(published: Path) -> None:
    path = published / "HPS_v2.1_compressed.pt"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match=r"has MD5 .* but the published file has"):
        load(published)


def test_a_pickle_that_runs_code_is_never_run(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Hostile:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    path = published / "HPS_v2.1_compressed.pt"
    torch.save({"state_dict": Hostile()}, path)
    digest = hashlib.md5(path.read_bytes()).hexdigest()
    monkeypatch.setitem(hps.FILES, "v2.1", (path.name, digest))
    with pytest.raises(ValueError, match="does not hold the weights of ViT-H-14"):
        load(published)
    assert not (tmp_path / "ran").exists()


def test_a_folder_in_open_clips_layout_needs_nothing_else() -> None:
    scorer = ClipScorer.from_folder(Path("assets/tiny-clip"), "pad", CPU)
    found = scorer.score_frames(torch.rand(2, 3, 3, 16, 24), ("a circle", "a square"))
    assert found.shape == (2,)
    assert (found.abs() <= 1).all()


def test_the_aesthetic_head_reads_the_published_layout(tmp_path: Path) -> None:
    sizes = (16, *aesthetic.WIDTHS)
    stored = {}
    for place, width, after in zip(aesthetic.LAYERS, sizes, sizes[1:], strict=False):
        stored[f"layers.{place}.weight"] = torch.zeros(after, width)
        stored[f"layers.{place}.bias"] = torch.full((after,), 0.5)
    torch.save(stored, tmp_path / "head.pth")
    head = aesthetic.read_head(tmp_path / "head.pth", 16)
    assert head(torch.rand(2, 16)).flatten().tolist() == [0.5, 0.5]
    torch.save({"other": torch.zeros(1)}, tmp_path / "head.pth")
    with pytest.raises(ValueError, match=r"^reward\.settings\.head: .* is not the published head"):
        aesthetic.read_head(tmp_path / "head.pth", 16)
