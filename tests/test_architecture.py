"""The rooms: who may import whom, which of them are free of torch, and what every file keeps to."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.catalog.registry import Registry
from studio import tabs
from studio.studio import Studio
from studio.ui import build_page, find_styles, find_tabs

PACKAGES = ("pipelines", "trainers", "studio")
FILES = [*sorted(p for package in PACKAGES for p in Path(package).rglob("*.py")), Path("app.py")]
MODULES = {".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in FILES}

# Each room, a folder or a file at the top of a package, and the rooms that it may import. `p`, `t`
# and `s` stand for the three packages. What a room needs stands above it: there is no circle.
ROOMS = {
    "p.strict": "",
    "p.geometry": "p.strict",
    "p.recipe": "p.geometry p.strict",
    "p.memory": "p.strict",
    "p.files": "p.geometry p.recipe",
    "p.video": "p.files p.recipe p.strict",
    "p.catalog": "p.files p.geometry p.memory p.recipe p.strict",
    "p.sampling": "p.geometry p.recipe",
    "p.formats": "p.catalog p.files p.sampling",
    "p.models": "p.files p.formats p.geometry p.memory p.recipe p.sampling",
    "p.lora": "p.catalog p.files p.formats p.models p.recipe p.sampling",
    "p.model_cache": "p.catalog p.files p.lora p.memory p.models p.recipe p.sampling",
    "p.generate": "p.catalog p.files p.model_cache p.models p.recipe p.sampling p.video",
    "p.commands": "p.catalog p.files p.generate p.lora p.models p.recipe p.sampling p.strict",
    "p.__main__": "p.catalog p.commands p.files p.formats p.generate p.geometry p.model_cache "
    "p.models p.recipe p.strict p.video",
    "t.mirror": "",
    "t.worlds": "p.video",
    "t.settings": "p.catalog p.geometry p.recipe p.strict",
    "t.sources": "p.catalog p.files p.strict t.settings",
    "t.losses": "p.sampling",
    "t.algorithm": "p.recipe p.sampling t.settings",
    "t.rollout": "p.recipe p.sampling t.algorithm",
    "t.ranks": "t.settings",
    "t.scoring": "p.strict t.ranks t.settings",
    "t.registry": "p.strict t.algorithm t.scoring t.settings",
    "t.algorithms": "p.recipe p.sampling p.strict t.algorithm t.losses t.rollout t.settings",
    "t.rewards": "p.strict t.registry t.scoring t.settings t.worlds",
    "t.networks": "p.catalog p.files p.lora p.models p.recipe p.sampling t.ranks t.registry "
    "t.settings",
    "t.data": "p.files p.geometry p.sampling t.algorithm t.networks t.settings t.worlds",
    "t.run": "p.catalog p.files p.lora p.sampling p.strict t.algorithm t.networks t.ranks "
    "t.settings",
    "t.prepare": "p.catalog p.files p.models p.video t.data t.networks t.run t.settings t.sources",
    "t.validation": "p.catalog p.files p.generate p.recipe p.video t.networks t.ranks t.run "
    "t.scoring t.settings t.worlds",
    "t.estimate": "p.catalog p.files p.formats p.recipe p.sampling t.algorithm t.networks "
    "t.registry t.settings",
    "t.engine": "p.catalog t.algorithm t.data t.networks t.ranks t.registry t.run t.scoring "
    "t.settings t.validation",
    "t.evaluation": "p.catalog p.files p.generate p.geometry p.lora p.model_cache p.models "
    "p.recipe p.sampling t.scoring t.worlds",
    "t.tiny": "p.files p.geometry p.models t.data t.evaluation t.networks t.scoring t.settings "
    "t.worlds",
    "t.__main__": "p.catalog t.engine t.estimate t.prepare t.ranks t.registry t.settings",
    "t.reward_server": "",
    "s.page": "p.strict",
    "s.runs": "p.catalog p.strict t.settings",
    "s.train": "p.catalog p.files p.strict t.registry t.settings s.page s.runs",
    "s.clips": "p.catalog p.files p.generate p.geometry p.model_cache p.models p.recipe p.strict "
    "s.runs",
    "s.compare": "p.catalog p.files p.geometry p.memory p.recipe p.strict s.clips s.page",
    "s.studio": "p.catalog p.recipe p.video s.clips s.compare s.page s.train",
    "s.api": "s.compare s.page s.studio",
    "s.run_page": "p.catalog p.recipe p.video s.compare s.page s.runs s.studio s.train",
    "s.models": "p.catalog s.runs",
    "s.data": "p.geometry t.sources s.page s.runs s.train",
    "s.tabs": "p.catalog p.files p.memory p.recipe p.video t.mirror s.compare s.data s.models "
    "s.page s.run_page s.runs s.studio s.train",
    "s.ui": "s.api s.page s.runs s.studio s.tabs",
}
# Free of torch as a whole, for the web process. The studio imports these and itself, and `s.clips`,
# whose workers are processes of their own, what makes a clip.
LIGHT = "p.geometry p.strict p.recipe p.memory p.files p.video p.catalog t.settings t.sources"
LIGHT += " t.worlds t.mirror t.registry"
IN_WORKERS = {"p.generate", "p.model_cache", "p.models"}
BANNED_NAMES = {"x_0", "x_1", "cfg", "t"}
BANNED_FILES = {"utils", "helpers", "misc", "common"}
MAX_FILES = 12  # of a room; algorithms, rewards and tabs are lists, as long as they like


def imports(path: Path) -> set[str]:
    """Full names of all imported modules, wherever in the file."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else str(node.module) for name in names}
    return found


def room(module: str) -> str:
    """The room of one of our modules."""
    parts = module.split(".")
    return f"{parts[0][0]}.{parts[1]}"


def module_name(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def ours(path: Path) -> set[str]:
    """Our modules that a file imports, without the packages themselves."""
    return {name for name in imports(path) if name.split(".")[0] in PACKAGES and "." in name}


def touches(path: Path, module: str) -> bool:
    return any(name == module or name.startswith(f"{module}.") for name in imports(path))


IN_ROOMS = [path for path in FILES if "." in module_name(path)]


@pytest.mark.parametrize("path", IN_ROOMS, ids=str)
def test_a_file_imports_only_what_its_room_may(path: Path) -> None:
    own = room(module_name(path))
    foreign = {room(name) for name in ours(path)} - {own, *ROOMS[own].split()}
    assert not foreign, f"{path} imports {sorted(foreign)}"


def test_rooms_form_a_stack() -> None:
    above: dict[str, str] = dict(ROOMS)
    while above:
        free = {name for name, needs in above.items() if not set(needs.split()) & set(above)}
        assert free, f"a circle among {sorted(above)}"
        above = {name: needs for name, needs in above.items() if name not in free}


def test_no_room_may_import_what_it_does_not() -> None:
    used: dict[str, set[str]] = {name: set() for name in ROOMS}
    for path in IN_ROOMS:
        own = room(module_name(path))
        used[own] |= {room(name) for name in ours(path)} - {own}
    unused = {name: set(needs.split()) - used[name] for name, needs in ROOMS.items()}
    assert {name: rest for name, rest in unused.items() if rest} == {}


@pytest.mark.parametrize("path", IN_ROOMS, ids=str)
def test_a_private_file_stays_in_its_room(path: Path) -> None:
    private = {name for name in ours(path) if re.search(r"\._[a-z]", name)}
    assert {name for name in private if room(name) != room(module_name(path))} == set()


@pytest.mark.parametrize("name", [name for name in ROOMS if name.startswith("s.")])
def test_the_studio_imports_light_rooms_only(name: str) -> None:
    foreign = {need for need in ROOMS[name].split() if not need.startswith("s.")}
    assert foreign <= set(LIGHT.split()) | (IN_WORKERS if name == "s.clips" else set())


def test_light_rooms_and_the_studio_reach_neither_torch_nor_diffusers() -> None:
    light = {*LIGHT.split(), *(name for name in ROOMS if name.startswith("s."))}
    modules = [module_name(p) for p in IN_ROOMS if room(module_name(p)) in light]
    modules = ["app", *(name for name in modules if not name.endswith("__main__"))]
    code = f"import {', '.join(modules)}, sys\n"
    code += "print([m for m in ('torch', 'diffusers', 'transformers') if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


@pytest.mark.parametrize("path", sorted(Path("trainers/algorithms").glob("[a-z]*.py")), ids=str)
def test_a_method_extends_one_other_at_most(path: Path) -> None:
    others = {name for name in ours(path) if name.startswith("trainers.algorithms.")}
    assert len(others) <= 1


def test_rooms_are_not_crowded() -> None:
    folders = {path.parent for path in FILES if len(path.parts) == 3}
    lists = {Path("trainers/algorithms"), Path("trainers/rewards"), Path("studio/tabs")}
    crowded = {f: n for f in folders - lists if (n := len(list(f.glob("[a-z]*.py")))) > MAX_FILES}
    assert crowded == {}
    unexplained = {f for f in folders if not (ast.get_docstring(_tree(f / "__init__.py")) or "")}
    assert unexplained == set()


def test_gradio_stays_in_the_studio() -> None:
    users = {path.parts[0] for path in FILES if touches(path, "gradio")}
    assert users <= {"app.py", "studio"}


def test_torch_distributed_stays_in_two_files() -> None:
    users = {path.as_posix() for path in FILES if touches(path, "torch.distributed")}
    assert users <= {"trainers/ranks/ranks.py", "trainers/run/checkpoint.py"}


def test_every_tab_says_what_the_page_asks_of_it() -> None:
    found = find_tabs()
    assert {tab.TITLE for tab in found} >= {"Compare", "Train", "Runs", "Data", "Models"}
    for tab in found:
        assert callable(tab.build)
        assert isinstance(tab.FOR_VIEWERS, bool)
        assert tab.LINK is None or tab.LINK.isidentifier()
        assert tab.STYLE is None or tab.STYLE.suffix == ".css"
    assert len({tab.ORDER for tab in found}) == len(found)


def test_a_file_among_the_tabs_is_a_tab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "notes.css").touch()
    (tmp_path / "notes.py").write_text(
        "import gradio as gr\nfrom pathlib import Path\n"
        "TITLE, ORDER, LINK, FOR_VIEWERS = 'Notes', 1.5, 'notes', True\n"
        "STYLE = Path(__file__).with_suffix('.css')\n"
        "def build(studio, page):\n    gr.Markdown('A note.', elem_id='a-note')\n"
    )
    monkeypatch.setattr(tabs, "__path__", [*tabs.__path__, str(tmp_path)])
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    (tmp_path / "data").mkdir()
    page = build_page(Studio(tmp_path / "data", Registry(), viewer=True), [])
    drawn = page.get_config_file()["components"]
    titles = [each["props"]["label"] for each in drawn if each["type"] == "tabitem"]
    assert titles == ["Compare", "Notes", "Models"]
    assert "a-note" in {each["props"].get("elem_id") for each in drawn}
    assert tmp_path / "notes.css" in find_styles()


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@pytest.mark.parametrize("path", FILES, ids=str)
def test_files_and_functions_stay_small_and_well_named(path: Path) -> None:
    assert path.stem not in BANNED_FILES
    text, tree = path.read_text(), _tree(path)
    if len(text.splitlines()) > 300:
        assert "300 lines" in (ast.get_docstring(tree) or ""), "say why it has over 300 lines"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= 50, f"{node.name} has {length} lines"
        if isinstance(node, ast.arg):
            assert node.arg not in BANNED_NAMES, f"line {node.lineno}: argument {node.arg}"
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            assert node.id not in BANNED_NAMES, f"line {node.lineno}: {node.id}"
    assert not re.search(r"\b(TODO|FIXME|XXX)\b", text)
