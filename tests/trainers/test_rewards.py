"""Rewards: the registry, what the shapes reward says, and its way into the loss."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from trainers.distributed import World
from trainers.engine import Trainer
from trainers.models import load_models
from trainers.registry import REWARDS, build_config, load_reward, rewards
from trainers.worlds.shapes import SLOTS, all_captions, render

ONE = World(0, 1, torch.device("cpu"))


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
    assert rewards()
    for name in rewards():
        assert callable(load_reward(name).score)


def test_the_shapes_reward_is_the_share_of_slots_that_hold() -> None:
    caption = all_captions()[100]
    video = torch.from_numpy(np.stack([render(caption, 1)] * 2)).permute(0, 1, 4, 2, 3)
    other = str(caption).replace(caption.colour, "white" if caption.colour != "white" else "red")
    scores = load_reward("shapes").score(video, (str(caption), other))
    assert scores.tolist() == pytest.approx([1.0, 1 - 1 / len(SLOTS)])


def test_a_method_gets_the_reward_of_the_decoded_latents(tree, tmp_path: Path) -> None:
    config = build_config(tree({"reward_weight": 2.0}, reward="shapes"))
    run = Trainer(config, load_models(config), tmp_path / "run", ONE)
    score = run.algorithm.score
    assert score is not None
    codec: Any = score
    clip = torch.from_numpy(render(all_captions()[0], 5, 5, 32, 32)).permute(0, 3, 1, 2)[None]
    latents = codec.codec.encode(clip)
    with torch.autocast("cpu", torch.bfloat16):
        found = score(latents, (str(all_captions()[0]),))
    expected = load_reward("shapes").score(codec.codec.decode(latents), (str(all_captions()[0]),))
    assert torch.equal(found, expected)
    assert torch.isfinite(run.train_step()["student/loss"])


@pytest.mark.parametrize(
    ("algorithm", "settings", "message"),
    [
        ({"reward_weight": 1.0}, {}, "algorithm.reward_weight: there is no reward; name one in"),
        ({}, {"reward": "shapes"}, "reward: dmd2 as it is set reads none"),
        ({"reward_weight": 1.0}, {"reward": "shaeps"}, "reward: there is no reward 'shaeps'; did"),
    ],
)
def test_a_reward_without_a_reader_and_a_reader_without_a_reward_name_the_field(
    algorithm: dict[str, Any], settings: dict[str, Any], message: str, tree
) -> None:
    with pytest.raises(ValueError) as caught:
        build_config(tree(algorithm, **settings))
    assert str(caught.value).startswith(message)
