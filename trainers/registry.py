"""The folder is the registry: every file in trainers/algorithms/ is a method of that name."""

import importlib
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import ValidationError

from pipelines.recipe import explain
from trainers.config import TrainConfig, merge

if TYPE_CHECKING:
    from trainers.algorithm import Algorithm

FOLDER = Path(__file__).parent / "algorithms"


def methods() -> list[str]:
    """The names of all methods, sorted. Imports none of them."""
    return sorted(path.stem for path in FOLDER.glob("*.py") if not path.stem.startswith("_"))


def algorithm_class(method: str) -> "type[Algorithm[Any]]":
    """The `Method` class in the method's file. ValueError for an unknown name."""
    if method not in methods():
        near = get_close_matches(method, methods(), n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(methods())}"
        raise ValueError(f"method: there is no method {method!r}; {hint}")
    return importlib.import_module(f"trainers.algorithms.{method}").Method


def load_config(path: Path, overrides: Sequence[str] = ()) -> TrainConfig[Any]:
    """Reads a preset, applies `key=value` overrides and validates. ValueError names the field."""
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
    return build_config(merge(tree, overrides))


def build_config(tree: dict[str, Any]) -> TrainConfig[Any]:
    """Validates a tree against its method's own configuration. ValueError names the field."""
    if not isinstance(tree.get("method"), str):
        raise ValueError(f"method: name one of {', '.join(methods())}")
    method_config = algorithm_class(tree["method"]).Config
    try:
        return TrainConfig[method_config].model_validate(tree)  # type: ignore[valid-type]
    except ValidationError as error:
        raise ValueError(explain(error)) from error
