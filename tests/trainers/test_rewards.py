"""Rewards: the registry, what each of them says, and the way into the loss."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from tests.trainers.runs import ONE, trainer
from trainers.registry import REWARDS, build_config, load_reward, reward_class, rewards
from trainers.scoring.reward import LatentScore, NoSettings, Reward
from trainers.settings.reward import RewardChoice
from trainers.worlds.shapes import SLOTS, all_captions, render

CPU = torch.device("cpu")
CAPTION = all_captions()[100]


def load(kind: str, **settings: Any) -> Any:
    return load_reward(RewardChoice(kind=kind, settings=settings), CPU)


def clip(caption: Any = CAPTION, seed: int = 1, **size: int) -> Tensor:
    """One rendered clip as a video [1, F, 3, H, W]."""
    return torch.from_numpy(render(caption, seed, **size)).permute(0, 3, 1, 2)[None]


@pytest.fixture
def tree(whole_model: Path, tmp_path: Path):
    """Settings of the method, and of the run -> the tree of a data-free DMD2 run."""
    (tmp_path / "prompts.txt").write_text("\n".join(str(c) for c in all_captions()[:4]))

    def build(algorithm: dict[str, Any], **settings: Any) -> dict[str, Any]:
        data = {"source": "prompts", "file": str(tmp_path / "prompts.txt"), "batch_size": 2}
        run = {"name": "mini", "method": "dmd2", "model": str(whole_model), "num_steps": 1}
        cheap = {"precision": "fp32", "device": "cpu"}
        return (
            run | cheap | {"data": data, "algorithm": {"student_every": 1} | algorithm} | settings
        )

    return build


def test_every_file_in_the_folder_is_a_reward() -> None:
    assert rewards() == sorted(p.stem for p in REWARDS.glob("*.py") if p.stem != "__init__")
    assert {"hps", "shapes", "tiny_clip", "remote", "weighted"} <= set(rewards())
    for name in rewards():
        assert callable(reward_class(name).score)


def test_the_shapes_reward_is_the_share_of_slots_that_hold() -> None:
    video = clip().repeat(2, 1, 1, 1, 1)
    other = str(CAPTION).replace(CAPTION.colour, "white" if CAPTION.colour != "white" else "red")
    scores = load("shapes").score(video, (str(CAPTION), other))
    assert scores.tolist() == pytest.approx([1.0, 1 - 1 / len(SLOTS)])


def test_a_method_gets_the_reward_of_the_decoded_latents(tree, tmp_path: Path) -> None:
    config = build_config(tree({"reward": {"beta": 2.0}}, reward="shapes"))
    run = trainer(config, tmp_path / "run")
    score: Any = run.algorithm.score
    caption = str(all_captions()[0])
    codec = run.validator or score
    latents = encode(codec.vae, clip(all_captions()[0], 5, num_frames=5, height=32, width=32))
    with torch.autocast("cpu", torch.bfloat16):
        found = score(latents, (caption,))
    assert torch.equal(found, score.of_video(decode(score.vae, latents), (caption,)))
    assert torch.isfinite(run.train_step()["student/loss"])
    assert run.step == 0


def encode(vae: Any, video: Tensor) -> Tensor:
    return vae.encode(video.transpose(1, 2) * 2 - 1).latent_dist.mode()


def decode(vae: Any, latents: Tensor) -> Tensor:
    with torch.no_grad():
        return (vae.decode(latents).sample / 2 + 0.5).transpose(1, 2)


@pytest.mark.parametrize(
    ("algorithm", "settings", "message"),
    [
        ({"reward": {}}, {}, "algorithm.reward: there is no reward; name one in"),
        ({}, {"reward": "shapes"}, "reward: dmd2 as it is set reads none"),
        ({"reward": {}}, {"reward": "shaeps"}, "reward: there is no reward 'shaeps'; did"),
        (
            {"reward": {}},
            {"reward": {"kind": "motion", "settings": {"enuogh": 1}}},
            "reward.settings.enuogh: is not a known setting",
        ),
        (
            {"reward": {}},
            {"reward": {"kind": "exposure", "num_random_frames": 3}},
            "reward: num_random_frames is read with frames random",
        ),
    ],
)
def test_a_reward_without_a_reader_and_a_reader_without_a_reward_name_the_field(
    algorithm: dict[str, Any], settings: dict[str, Any], message: str, tree
) -> None:
    with pytest.raises(ValueError) as caught:
        build_config(tree(algorithm, **settings))
    assert str(caught.value).startswith(message)


def test_a_reward_of_motion_cannot_be_shown_one_frame(tree, tmp_path: Path) -> None:
    choice = {"kind": "shapes", "frames": "first"}
    with pytest.raises(ValueError, match=r"^reward\.frames is first but shapes looks at motion"):
        trainer(build_config(tree({"reward": {}}, reward=choice)), tmp_path / "run")


class Sees(Reward[NoSettings]):
    """Keeps what it is shown."""

    def score(self, video: Tensor, prompts: tuple[str, ...]) -> Tensor:
        self.video = video
        return torch.zeros(len(prompts))


@pytest.mark.parametrize(("frames", "expected"), [("first", 1), ("random", 3), ("all", 9)])
def test_a_reward_sees_as_many_frames_as_the_configuration_says(
    frames: str, expected: int, whole_model: Path
) -> None:
    vae = AutoencoderKLWan.from_pretrained(whole_model, subfolder="vae")
    wanted = 3 if frames == "random" else None
    choice = RewardChoice.model_validate(
        {"kind": "exposure", "frames": frames, "num_random_frames": wanted}
    )
    reward = Sees(NoSettings(), CPU)
    score = LatentScore(reward, choice, vae, ONE)
    latents = torch.randn(1, 16, 3, 4, 4)
    assert score(latents, ("",)).tolist() == [0]
    seen, whole = reward.video, decode(vae, latents).clamp(0, 1)
    assert seen.shape[1] == expected
    places = [int((whole[0] - frame).abs().flatten(1).amax(1).argmin()) for frame in seen[0]]
    assert places == sorted(set(places))
    score.of_video(whole, ("",))
    assert reward.video.shape == seen.shape


# ---------------------------------------------------------------- plain rewards


def test_motion_is_full_from_enough_on_and_zero_for_a_still() -> None:
    still = clip()[:, :1].repeat(1, 5, 1, 1, 1)
    video = torch.cat([still, still]).clone()
    video[1] = torch.arange(5).view(5, 1, 1, 1) * 0.01
    assert load("motion", enough=0.02).score(video, ("", "")).tolist() == pytest.approx([0, 0.5])
    assert load("motion", enough=0.005).score(video, ("", "")).tolist() == pytest.approx([0, 1])


def test_exposure_falls_with_the_distance_from_the_band_and_pulls_white_back() -> None:
    video = torch.stack([torch.full((2, 3, 4, 4), level) for level in (0.5, 1.0, 0.975, 0.0)])
    video.requires_grad_()
    scores = load("exposure", low=0.05, high=0.95).score(video, ("",) * 4)
    assert scores.tolist() == pytest.approx([1, 0, 0.5, 0], abs=1e-5)
    scores.sum().backward()
    assert video.grad is not None
    assert (video.grad[1] < 0).all()
    assert (video.grad[3] > 0).all()


def test_a_weighted_sum_adds_up_and_is_a_black_box_with_one() -> None:
    parts = [{"kind": "motion", "weight": 2.0}, {"kind": "exposure", "weight": 0.5}]
    both = load("weighted", rewards=parts)
    expected = 2 * load("motion").score(clip(), ("",)) + 0.5 * load("exposure").score(clip(), ("",))
    torch.testing.assert_close(both.score(clip(), ("",)), expected)
    assert both.differentiable
    assert not load("weighted", rewards=[*parts, {"kind": "shapes", "weight": 1}]).differentiable


def test_the_first_frame_of_a_part_is_what_it_sees_alone() -> None:
    parts = [{"kind": "exposure", "weight": 1.0, "frames": "first"}]
    video = torch.cat([torch.full((1, 1, 3, 4, 4), 0.5), torch.ones(1, 3, 3, 4, 4)], 1)
    assert load("weighted", rewards=parts).score(video, ("",)).item() == pytest.approx(1)


# ---------------------------------------------------------------- the embedded CLIP


@pytest.fixture(scope="module")
def tiny_clip() -> Any:
    return load("tiny_clip")


def test_tiny_clip_prefers_the_caption_of_a_clip_to_one_with_a_slot_changed(tiny_clip) -> None:
    from trainers.tiny.clip import one_slot_changed

    generator = np.random.default_rng(3)
    captions = [all_captions()[i] for i in generator.choice(864, 6, replace=False)]
    right = []
    for number, caption in enumerate(captions):
        texts = tuple(map(str, (caption, *one_slot_changed(caption))))
        scores = tiny_clip.score(clip(caption, 2**31 + number).expand(17, -1, -1, -1, -1), texts)
        right += (scores[0] > scores[1:]).tolist()
    assert np.mean(right) > 0.9


def test_tiny_clip_sees_motion_played_backwards(tiny_clip) -> None:
    caption = next(c for c in all_captions() if c.motion == "moving left")
    video = clip(caption, 7)
    both = torch.cat([video, video.flip(1)])
    forwards, backwards = tiny_clip.score(both, (str(caption),) * 2).tolist()
    assert forwards > backwards + 0.1


def test_the_gradient_reaches_every_frame_that_tiny_clip_looks_at(tiny_clip) -> None:
    video = clip().requires_grad_()
    tiny_clip.score(video, (str(CAPTION),)).sum().backward()
    assert video.grad is not None
    seen = video.grad.flatten(2).abs().sum(2)[0].nonzero().flatten().tolist()
    assert seen == [0, 8, 16]


def test_rewards_are_the_same_in_any_batch(tiny_clip) -> None:
    videos = torch.cat([clip(seed=seed) for seed in range(3)])
    together = tiny_clip.score(videos, (str(CAPTION),) * 3)
    alone = [tiny_clip.score(video[None], (str(CAPTION),)) for video in videos]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-5)
    assert ONE.is_main
