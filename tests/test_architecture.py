"""Who may import whom (read from the source), and what every file must keep to."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGES = ("pipelines", "trainers", "studio")
OURS = {"app", *PACKAGES}
FILES = [*sorted(p for package in PACKAGES for p in Path(package).rglob("*.py")), Path("app.py")]
WITHOUT_TORCH = {  # of the trainers' modules, those that the web process may import
    "trainers.settings.run",
    "trainers.look",
    "trainers.mirror",
    "trainers.sources.inspect",
    "trainers.registry",
    "trainers.sources.listing",
}
BANNED_NAMES = {"x_0", "x_1", "cfg", "t"}
BANNED_FILES = {"utils", "helpers", "misc", "common"}


def imports(path: Path) -> set[str]:
    """Full names of all imported modules, wherever in the file, but for type checking only."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def touches(path: Path, module: str) -> bool:
    return any(name == module or name.startswith(f"{module}.") for name in imports(path))


def allowed(path: Path) -> set[str]:
    """The modules of ours that a file may import, by the folder it is in."""
    if path.name == "app.py":
        return OURS
    if path.is_relative_to("trainers/algorithms"):
        losses = {"trainers.losses", "trainers.rollout", "trainers.advantages"}
        base = {"trainers.algorithm", "trainers.settings.run", "trainers.reward_method"}
        return (
            losses
            | base
            | {"pipelines.sampling.flow", "pipelines.recipe", "pipelines.sampling.denoiser"}
        )
    if path.is_relative_to("trainers/rewards"):
        if path.stem == "shapes":
            return {"trainers.scoring.reward", "trainers.worlds"}
        base = {"trainers.scoring.reward", "trainers.settings.reward", "pipelines.recipe"}
        tools = {"trainers.scoring.clip", "trainers.contact_sheet", "trainers.scoring.weight_files"}
        parts = {"trainers.registry"} if path.stem == "weighted" else set()
        return base | tools | parts | {"trainers.validation.drift"}
    return {
        "pipelines": {"pipelines"},
        "trainers": {"pipelines", "trainers"},
        "studio": {"pipelines", "studio", *WITHOUT_TORCH},
    }[path.parts[0]]


@pytest.mark.parametrize("path", FILES, ids=str)
def test_a_file_imports_only_what_its_room_may(path: Path) -> None:
    ours = {name for name in imports(path) if name.split(".")[0] in OURS and name not in OURS}
    rooms = allowed(path)
    foreign = {n for n in ours if not any(n == room or n.startswith(f"{room}.") for room in rooms)}
    assert not foreign, f"{path} imports {sorted(foreign)}"


def test_gradio_stays_in_the_studio() -> None:
    users = {path.parts[0] for path in FILES if touches(path, "gradio")}
    assert users <= {"app.py", "studio"}


def test_torch_distributed_stays_in_two_files() -> None:
    users = {path.as_posix() for path in FILES if touches(path, "torch.distributed")}
    assert users <= {"trainers/ranks/ranks.py", "trainers/run/checkpoint.py"}


def test_the_web_process_imports_neither_torch_nor_diffusers() -> None:
    modules = ["app", "pipelines.recipe", "pipelines.catalog.registry", "pipelines.video"]
    modules += sorted(WITHOUT_TORCH)
    modules += [".".join(p.with_suffix("").parts) for p in FILES if p.parts[0] == "studio"]
    code = f"import {', '.join(m.removesuffix('.__init__') for m in modules)}, sys\n"
    code += "print([m for m in ('torch', 'diffusers', 'transformers') if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


@pytest.mark.parametrize("path", FILES, ids=str)
def test_files_and_functions_stay_small_and_well_named(path: Path) -> None:
    assert path.stem not in BANNED_FILES
    text = path.read_text()
    assert len(text.splitlines()) <= 300, "over 300 lines: split or simplify"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= 50, f"{node.name} has {length} lines"
        if isinstance(node, ast.arg):
            assert node.arg not in BANNED_NAMES, f"line {node.lineno}: argument {node.arg}"
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            assert node.id not in BANNED_NAMES, f"line {node.lineno}: {node.id}"
    assert not re.search(r"\b(TODO|FIXME|XXX)\b", text)
