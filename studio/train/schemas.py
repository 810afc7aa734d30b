"""The methods' settings, for a process without torch: their JSON schemas, and checks.

A method's file imports torch, so one child process reads it. The child stays, because that import
takes seconds and a check then takes a millisecond. Schemas are kept on disk until the code changes.
"""

import ast
import hashlib
import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from pebble import ProcessExpired, ProcessPool
from pydantic import ValidationError

from pipelines.files.disk import atomic_path
from trainers import registry
from trainers.settings.run import TrainConfig

CODE = (registry.FOLDER.parent, registry.FOLDER.parents[1] / "pipelines")
Tree = dict[str, Any]
Schema = dict[str, Any]


@dataclass(frozen=True)
class Checked:
    """The whole configuration, or one sentence on what is wrong and the path of the field."""

    tree: Tree | None = None
    problem: str = ""
    path: tuple[str, ...] = ()


class Methods:
    """The methods and their settings. Starts its child process when it is first needed."""

    def __init__(self, data: Path):
        self._kept = data / "cache" / "schemas.json"
        self._pool: ProcessPool | None = None
        self._lock = threading.Lock()

    def schemas(self) -> dict[str, Schema]:
        """The JSON schema of a whole configuration, by method."""
        digest = code_digest()
        if self._kept.is_file():
            kept = json.loads(self._kept.read_text())
            if kept["digest"] == digest:
                return dict(kept["schemas"])
        schemas: dict[str, Schema] = self._ask(read_schemas)
        with atomic_path(self._kept) as partial:
            partial.write_text(json.dumps({"digest": digest, "schemas": schemas}))
        return schemas

    def check(self, tree: Mapping[str, Any]) -> Checked:
        """As the trainer would read it."""
        checked: Checked = self._ask(check, dict(tree))
        return checked

    def close(self) -> None:
        """Ends the child process."""
        if self._pool is not None:
            self._pool.stop()
            self._pool.join()

    def _ask(self, function: Any, *arguments: Any) -> Any:
        with self._lock:
            if self._pool is None:
                self._pool = ProcessPool(max_workers=1, context=get_context("spawn"))
            future = self._pool.schedule(function, arguments)
        try:
            return future.result()
        except ProcessExpired as error:  # the pool has begun another one
            raise ValueError("The process that checks settings died; try again.") from error


def descriptions() -> dict[str, str]:
    """The first sentence of every method's file, by method. Imports none of them."""
    texts = {name: (registry.FOLDER / f"{name}.py").read_text() for name in registry.methods()}
    found = {name: ast.get_docstring(ast.parse(text)) or "" for name, text in texts.items()}
    return {name: text.partition("\n\n")[0].replace("\n", " ") for name, text in found.items()}


def code_digest() -> str:
    """Of all code that settings are declared in."""
    files = sorted(path for folder in CODE for path in folder.rglob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


# Below: what runs inside the child process


def read_schemas() -> dict[str, Schema]:
    """Imports every method."""
    configs = {name: registry.algorithm_class(name).Config for name in registry.methods()}
    return {
        name: TrainConfig[config].model_json_schema()  # type: ignore[valid-type]
        for name, config in configs.items()
    }


def check(tree: Tree) -> Checked:
    """Validates as `python -m trainers` does."""
    try:
        config = registry.build_config(tree)
    except ValueError as error:
        cause = error.__cause__
        where = cause.errors()[0]["loc"] if isinstance(cause, ValidationError) else ()
        return Checked(problem=str(error), path=field_path(where))
    return Checked(tree=config.model_dump(mode="json"))


def field_path(location: Sequence[int | str]) -> tuple[str, ...]:
    """Pydantic's location as a name in the form: without the places in a list."""
    return tuple(str(part) for part in takewhile(lambda part: isinstance(part, str), location))
