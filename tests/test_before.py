"""What was written before the files moved into rooms still works: clips, runs, commands."""

import runpy
import shutil
import sys
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from pipelines.catalog.registry import Registry
from pipelines.catalog.students import LORA_FILE
from pipelines.recipe import Recipe
from pipelines.video import read_recipe
from studio.clips.store import Store
from studio.clips.workers import clip_path, store_path
from studio.compare.variants import from_recipe, lost_fields, to_recipe
from studio.run_page import view
from studio.runs.listing import list_runs
from studio.studio import Studio
from trainers.__main__ import main
from trainers.registry import build_config, read_tree

BEFORE = Path(__file__).parent / "data" / "before"
PROMPT = "a large red circle moving right on a navy background"
COMPARISON = "b3f88409ecc5a328"
KEYS = {"A": "69a5d5b24551b9d2a741d351310bc987", "B": "2653209038b00aadab6eb6bc154547ec"}
RUN = "old-run"
OLDER = ("wanx", "half", "half2", "step12")  # settings that became methods since


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A studio's folder of before; a copy, as SQLite writes when it opens."""
    return shutil.copytree(BEFORE / "data", tmp_path / "data")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of before, the only one of its folder."""
    return shutil.copytree(BEFORE / "runs", tmp_path / "runs") / RUN


def test_clips_and_their_recipes_keep_their_keys(data: Path) -> None:
    store = Store(store_path(data))
    assert store.clip_keys() == set(KEYS.values())
    for key in KEYS.values():
        path = clip_path(data, key)
        recipe = read_recipe(path)
        assert (path.is_file(), recipe.key()) == (True, key)
        assert recipe.to_json() in path.read_bytes().decode(errors="replace")
        info = store.clip_info(key)
        assert info is not None
        assert (info.num_forwards, info.total_sec is None) == (4, False)
    store.close()


def test_a_lost_index_is_made_again_of_the_clips(data: Path) -> None:
    store_path(data).unlink()
    studio = Studio(data, Registry(), viewer=False)
    studio.index_clips()
    assert studio.store.clip_keys() == set(KEYS.values())


def test_a_comparison_is_listed_and_its_link_gives_back_its_variants(data: Path) -> None:
    studio = Studio(data, Registry(), viewer=False)
    (listed,) = studio.history()
    variants = "TinyWan, 2 steps | tiny-dmd4, 4 steps"
    assert (listed["id"], listed["prompt"], listed["variants"]) == (COMPARISON, PROMPT, variants)
    shown = studio.status(COMPARISON)["cells"]
    assert [cell["state"] for cell in shown] == ["finished", "finished"]
    assert [cell["url"].split("/")[-1] for cell in shown] == [f"{k}.mp4" for k in KEYS.values()]
    for cell in studio.comparison(COMPARISON).cells:
        assert cell.recipe.key() == KEYS[cell.label]
        again = to_recipe(studio.registry, from_recipe(cell.recipe), cell.recipe.prompt)
        assert set(lost_fields(cell.recipe, again)) <= {"model_fingerprint"}  # weights may be newer


def test_a_run_is_listed_with_its_figures_samples_and_checkpoints(run: Path) -> None:
    (listed,) = list_runs(run.parent)
    assert (listed.name, listed.state, listed.method, listed.model, listed.step) == (
        RUN, "finished", "dmd2", "tiny-wan", 2,
    )  # fmt: skip
    assert {"student/loss", "critic/loss", "validation/score"} <= set(view.figures(run))
    assert view.curve(run, "student/loss").values == (0.0238438, 0.520411)
    assert [row.step for row in view.samples(run)] == [None, 2]
    assert [(saved.step, saved.best) for saved in view.checkpoints(run)] == [(2, True)]
    samples = [path for row in view.samples(run) for path in row.videos.values()]
    assert {read_recipe(path).prompt for path in samples} == {PROMPT}


def test_what_a_run_exported_is_a_model_by_name(run: Path) -> None:
    registry = Registry(runs_dir=run.parent)
    for name in (RUN, f"{RUN}@2"):
        entry = registry.entry(name)
        assert (entry.missing, entry.base, entry.preset.num_frames) == (None, "tiny-wan", 17)
        recipe: Recipe = registry.recipe(name, PROMPT)
        assert (recipe.sampler.name, recipe.sampler.num_inference_steps) == ("lcm", 1)


def test_a_checkpoint_is_exported_as_it_was(run: Path) -> None:
    exported = run / "exports" / "step_000002"
    shutil.rmtree(exported)
    assert main([str(run / "config.yaml"), "--run-dir", str(run), "--export", "2"]) == 0
    before = load_file(BEFORE / "runs" / RUN / "exports" / "step_000002" / LORA_FILE)
    now = load_file(exported / LORA_FILE)
    assert {name: tensor.tolist() for name, tensor in now.items()} == {
        name: tensor.tolist() for name, tensor in before.items()
    }
    assert (exported / "sampler.json").read_text() == (run / "export/sampler.json").read_text()


@pytest.mark.parametrize("name", ["runs/old-run/config", *(f"configs/{n}" for n in OLDER)])
def test_the_settings_of_a_run_are_accepted(name: str) -> None:
    path = BEFORE / f"{name}.yaml"
    assert build_config(read_tree(path)).name == read_tree(path)["name"]


@pytest.mark.parametrize(
    "given",
    [
        {"normaliser": "column"},
        {"shared_noise": False},
        {"normaliser": "sample", "shared_noise": True},
        {"variant": "half"},
        {"variant": "half2"},
        {"variant": "progressive"},
    ],
    ids=str,
)
def test_a_flag_that_became_a_method_is_accepted(given: dict[str, object]) -> None:
    method = "step_distill" if "variant" in given else "dmd2"
    data = {"source": "prompts", "file": "presets/prompts/shapes_train.txt"}
    build_config({"name": "a", "method": method, "algorithm": given, "num_steps": 1, "data": data})


@pytest.mark.parametrize(
    "command",
    [
        "trainers.worlds.evaluate",
        "trainers.worlds.tiny_wan",
        "trainers.worlds.shapes",
        "trainers.worlds.first_frames",
        "trainers.worlds.tiny_clip",
        "trainers/reward_server.py",
    ],
)
@pytest.mark.filterwarnings("ignore:.* found in sys.modules:RuntimeWarning")
def test_an_earlier_name_of_a_command_answers(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [command, "--help"])
    run = runpy.run_path if command.endswith(".py") else runpy.run_module
    with pytest.raises(SystemExit) as ended:
        run(command, run_name="__main__")
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("usage: ")
