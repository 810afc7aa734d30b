"""The methods and rewards by name, and the configurations that name them.

Every file in trainers/algorithms/ is a method, every file in trainers/rewards/ a reward.
"""

import importlib
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import ValidationError

from pipelines.strict import explain
from trainers.settings.earlier import in_todays_words
from trainers.settings.run import TrainConfig, apply_overrides

if TYPE_CHECKING:
    import torch

    from trainers.algorithm import Algorithm
    from trainers.scoring.reward import Reward
    from trainers.settings.reward import RewardChoice

# Other projects' names for w in positive + w * (positive - negative): FastVideo's, and the papers'.
DMD_FORM_GUIDANCE = ("real_score_guidance_scale", "guidance_w", "w")

FOLDER = Path(__file__).parent / "algorithms"
REWARDS = Path(__file__).parent / "rewards"


def methods() -> list[str]:
    """The names of all methods, sorted. Imports none of them."""
    return _names(FOLDER)


def rewards() -> list[str]:
    """The names of all rewards, sorted. Imports none of them."""
    return _names(REWARDS)


def algorithm_class(method: str) -> "type[Algorithm[Any]]":
    """The `Method` class in the method's file. ValueError for an unknown name."""
    _require_known("method", method, methods())
    return importlib.import_module(f"trainers.algorithms.{method}").Method


def reward_class(kind: str) -> "type[Reward[Any]]":
    """The `RewardModel` class in the reward's file. ValueError for an unknown name."""
    _require_known("reward", kind, rewards())
    return importlib.import_module(f"trainers.rewards.{kind}").RewardModel


def load_reward(choice: "RewardChoice", device: "torch.device") -> "Reward[Any]":
    """A reward, ready to score. ValueError where its weights are not here."""
    found = reward_class(choice.kind)
    return found(found.Config.model_validate(choice.settings), device)


def _names(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith("_"))


def _require_known(kind: str, name: str, known: Sequence[str]) -> None:
    if name not in known:
        near = get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(known)}"
        raise ValueError(f"{kind}: there is no {kind} {name!r}; {hint}")


def read_tree(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The settings in a file with `key=value` overrides applied, not validated."""
    if not path.is_file():
        raise ValueError(f"configuration: there is no file {path}")
    try:
        tree = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(
            f"configuration: {path} is not YAML ({error})".replace("\n", " ")
        ) from error
    if not isinstance(tree, dict):
        raise ValueError(f"configuration: {path} must hold settings, one `name: value` a line")
    return in_todays_words(apply_overrides(tree, overrides))


def build_config(tree: dict[str, Any]) -> TrainConfig[Any]:
    """Validates a tree against its method's own configuration. ValueError names the field."""
    if not isinstance(tree.get("method"), str):
        raise ValueError(f"method: name one of {', '.join(methods())}")
    tree = in_todays_words(tree)
    method_config = algorithm_class(tree["method"]).Config
    try:
        config = TrainConfig[method_config].model_validate(tree)  # type: ignore[valid-type]
    except ValidationError as error:
        raise ValueError(_foreign_guidance(error) or explain(error)) from error
    held_out = config.validation.held_out if config.validation else None
    for field, choice in (("reward", config.reward), ("validation.held_out", held_out)):
        if choice is not None:
            _require_valid_reward(field, choice)
    return config


def _require_valid_reward(field: str, choice: "RewardChoice") -> None:
    """ValueError naming the field, for an unknown reward and for settings that it does not have."""
    settings = reward_class(choice.kind).Config
    try:
        settings.model_validate(choice.settings)
    except ValidationError as error:
        raise ValueError(f"{field}.settings.{explain(error)}") from error


def _foreign_guidance(error: ValidationError) -> str | None:
    """What to write in place of another project's guidance, where the first problem is one."""
    first = error.errors()[0]
    field, value = ".".join(map(str, first["loc"])), first["input"]
    if first["type"] != "extra_forbidden" or first["loc"][-1] not in DMD_FORM_GUIDANCE:
        return None
    number = f" = {value + 1:g}" if isinstance(value, int | float) else ""
    return (
        f"{field}: is w of positive + w * (positive - negative), and guidance here is negative + "
        f"guidance_scale * (positive - negative); set guidance_scale = w + 1{number}"
    )
