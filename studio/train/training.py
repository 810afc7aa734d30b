"""The logic of Train: presets, checks, previews, commands and trial runs, without drawing.

A studio for viewers has none of it.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from pipelines.catalog.entries import ModelEntry
from pipelines.catalog.registry import PRESETS, Registry
from pipelines.files.disk import read_lines
from studio.page.words import value_at
from studio.runs.devices import default_devices
from studio.runs.files import ROOT
from studio.runs.launch import Devices, build_launch
from studio.runs.listing import free_name
from studio.runs.supervisor import Supervisor
from studio.train.estimate import advice
from studio.train.schema_form import SchemaForm
from studio.train.schemas import Checked, Methods, Tree
from trainers.registry import rewards

FOLDER = PRESETS / "train"
DEFAULTS = ""  # in place of a preset's name: the classes' own values
NUM_SHOWN = 5
PROMPT_SUFFIXES = (".txt", ".jsonl")
TRIAL_STEPS = 2
OUTSIDE = (
    "{place} is outside the folders that this page may read; put it below the project, the runs, "
    "the --data folder or a --models folder"
)
ELSEWHERE = (
    "{url} is not on this machine; have the studio started with --reward-host and its host, or "
    "start the run from a shell"
)


@dataclass
class Training:
    """Settings, plans and runs of one studio."""

    registry: Registry
    methods: Methods
    supervisor: Supervisor
    data_dirs: tuple[Path, ...] = ()  # where data may lie, beside project, runs and models
    reward_hosts: tuple[str, ...] = ()  # where reward servers may be, beside this machine

    def close(self) -> None:
        """Runs go on."""
        self.supervisor.close()
        self.methods.close()

    # Settings

    def presets(self, method: str) -> list[str]:
        """Names of the presets of a method."""
        return [path.stem for path in sorted(FOLDER.glob("*.yaml")) if _method(path) == method]

    def first_preset(self, method: str) -> str:
        """The first whose models are here, else the first, else none."""
        names, models = self.presets(method), self.registry.models()
        for name in names:
            tree = {"algorithm": {}, **self.preset(method, name)}
            named = [value_at(tree, path) for path in model_paths(tree)]
            here = [each in models and models[each].missing is None for each in named if each]
            if all(here):
                return name
        return names[0] if names else DEFAULTS

    def preset(self, method: str, name: str) -> Tree:
        """What a preset says; without one, only the method. ValueError for an unknown name."""
        if name == DEFAULTS:
            return {"method": method}
        if name not in self.presets(method):
            raise ValueError(f"preset: {method} has no preset {name!r}; choose from the list")
        tree: Tree = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
        return tree | {"name": free_name(self.supervisor.runs_dir, tree["name"])}

    def form(self, method: str) -> SchemaForm:
        """The form of a method's settings. ValueError for an unknown method."""
        schemas = self.methods.schemas()
        if method not in schemas:
            raise ValueError(f"method: there is no method {method!r}; choose from the list")
        return SchemaForm(schemas[method], self.choices())

    def choices(self) -> dict[str, list[str]]:
        """Suggestions for settings, by name of the setting."""
        models = list(self.registry.models())
        lists = [str(path.relative_to(ROOT)) for path in sorted(PRESETS.glob("prompts/*.txt"))]
        folders = {path.parent for path in self.supervisor.runs_dir.glob("*/index.json")}
        return {
            "model": models,
            "start_from": models,
            "kind": rewards(),
            "file": lists,
            "folder": sorted(shown_path(folder) for folder in folders),
        }

    def check(self, tree: Tree) -> Checked:
        """As the trainer would read it; also whether the files and models that it names exist."""
        checked = self.methods.check(tree)
        if checked.tree is None:
            return checked
        for path, problem in self._missing(checked.tree):
            return Checked(problem=f"{'.'.join(path)}: {problem}", path=path)
        return checked

    def _missing(self, tree: Tree) -> list[tuple[tuple[str, ...], str]]:
        """Paths of settings, and what is not there of what they name."""
        found = []
        for path in model_paths(tree):
            name = value_at(tree, path)
            if name is None:
                continue
            try:
                missing = self.entry(name).missing
            except ValueError as error:
                missing = str(error)
            if missing:
                found.append((path, missing))
        for name, is_there in (("file", Path.is_file), ("folder", Path.is_dir)):
            place = tree["data"].get(name)
            if place is None:
                continue
            path = ("data", tree["data"]["source"], name)
            if not self.may_read(ROOT / place):
                found.append((path, OUTSIDE.format(place=place)))
            elif not is_there(ROOT / place):
                found.append((path, f"{place} does not exist; choose another {name}"))
        for reward in (("reward",), ("validation", "held_out")):
            urls = [url for url in reward_urls(value_at(tree, reward)) if not self.may_ask(url)]
            found += [((*reward, "settings"), ELSEWHERE.format(url=url)) for url in urls]
        return found

    def may_read(self, path: Path) -> bool:
        """Whether a user of the page may name this as data: not everything on this machine."""
        roots = (ROOT, self.supervisor.runs_dir, *self.data_dirs, *self.registry.model_dirs)
        return any(path.resolve().is_relative_to(root.resolve()) for root in roots)

    def may_ask(self, url: str) -> bool:
        """Whether a user of the page may have a run ask this server: not all that is in reach."""
        try:
            host = urlsplit(url).hostname or ""
            return host in ("localhost", *self.reward_hosts) or ip_address(host).is_loopback
        except ValueError:  # no address, a name that is not allowed
            return False

    def entry(self, model: str) -> ModelEntry:
        """A model as a run would find it, from the project's folder."""
        folder = ROOT / model
        return self.registry.entry(str(folder) if folder.is_dir() else model)

    def advice(self, tree: Tree, num_ranks: int) -> list[str]:
        """What experience says against these valid settings."""
        return advice(tree, num_ranks, self.entry(tree["model"]).preset.width)

    def preview(self, data: Mapping[str, Any]) -> tuple[int, list[str]]:
        """How many prompts or samples there are, and the first. ValueError where none are."""
        source = data.get("source")
        if source == "prompts" and data.get("file"):
            path = ROOT / data["file"]
            if not self.may_read(path):
                raise ValueError(f"data.file: {OUTSIDE.format(place=data['file'])}")
            if path.suffix not in PROMPT_SUFFIXES or not path.is_file():
                raise ValueError(f"data.file: {data['file']} is no .txt or .jsonl file that exists")
            prompts = read_lines(path)
            return len(prompts), prompts[:NUM_SHOWN]
        if source == "prepared" and data.get("folder"):
            path = ROOT / data["folder"] / "index.json"
            if not self.may_read(path):
                raise ValueError(f"data.folder: {OUTSIDE.format(place=data['folder'])}")
            if not path.is_file():
                raise ValueError(
                    f"data.folder: {data['folder']} holds no finished data set; prepare one first"
                )
            captions = json.loads(path.read_text())["captions"]
            return len(captions), captions[:NUM_SHOWN]
        return 0, []

    # Runs

    def devices(self) -> list[str]:
        """What a run may use here; the CPU always."""
        return list(dict.fromkeys([*default_devices(), "cpu"]))

    def command(self, name: str, devices: Devices) -> str:
        """For a shell, what starting this run would run."""
        return build_launch(self.supervisor.runs_dir / name, devices).shell()

    def trial(self, tree: Tree, devices: Devices) -> str:
        """Two steps of a valid configuration as a run of their own, to see that they work."""
        name = free_name(self.supervisor.runs_dir, f"{tree['name'][:50]}-trial")
        short = {"name": name, "num_steps": TRIAL_STEPS, "log_every": 1, "validation": None}
        return self.supervisor.submit(tree | short, devices, first=True)


def shown_path(path: Path) -> str:
    """Below the project without its folder, else whole."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def model_paths(tree: Tree) -> list[tuple[str, ...]]:
    """Where a configuration names models."""
    roles = [name for name, role in tree["algorithm"].items() if isinstance(role, dict)]
    inside = [("algorithm", role, name) for role in roles for name in ("model", "start_from")]
    return [("model",), *inside]


def reward_urls(choice: Any) -> Iterator[str]:
    """The servers that a reward names, those inside a weighted sum too."""
    if isinstance(choice, Mapping):
        url = value_at(choice, ("settings", "url"))
        if choice.get("kind") == "remote" and url is not None:
            yield str(url)
        choice = list(choice.values())
    if isinstance(choice, list | tuple):
        for each in choice:
            yield from reward_urls(each)


def _method(path: Path) -> Any:
    tree = yaml.safe_load(path.read_text())
    return tree.get("method") if isinstance(tree, dict) else None
