"""What users and files write is text in the page, wherever it is shown."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from jinja2 import UndefinedError

from pipelines.catalog.downloads import DownloadState
from pipelines.catalog.registry import Registry
from studio.compare import html as compare_html
from studio.compare.cost import Forecast
from studio.data import html as data_html
from studio.data.preparing import DataSet
from studio.page.live import draw_live
from studio.page.markup import TEMPLATES, render
from studio.run_page import html as run_html
from studio.runs.listing import Run, list_runs
from studio.tabs.models import ModelRow
from studio.train import html as train_html

ATTACK = """<script>alert("1")</script> 'x' & <b onclick=y>"""
TAGS = re.compile(r"<(script|b onclick)")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A finished run all of whose words are hostile."""
    folder = tmp_path / "run"
    for name in ("step_000002", "teacher"):
        (folder / "samples" / name).mkdir(parents=True)
        (folder / "samples" / name / "00-seed0.mp4").touch()
    (folder / "checkpoints" / "step_000002").mkdir(parents=True)
    (folder / "export").mkdir()
    validation = {"prompts": [ATTACK]}
    tree = {"method": ATTACK, "model": ATTACK, "num_steps": 2, "validation": validation}
    (folder / "config.yaml").write_text(yaml.safe_dump(tree))
    (folder / "metrics.jsonl").write_text('{"step": 1, "<script>": 1}\n{"step": 2, "<script>": 2}')
    (folder / "events.jsonl").write_text('{"time": 0, "event": "alarm", "of": "<script>"}')
    (found,) = list_runs(tmp_path)
    return replace(found, name=ATTACK, reason=ATTACK, devices=(ATTACK,), ended=0.0)


def check(shown: str) -> None:
    assert not TAGS.search(shown)
    assert "&lt;script&gt;" in shown


@pytest.mark.parametrize("part", ["head", "overview", "samples", "checkpoints"])
def test_a_run_page_shows_text_as_text(run: Run, part: str) -> None:
    check(getattr(run_html, part)(run))


def test_the_lists_of_runs_and_data_show_text_as_text(run: Run, tmp_path: Path) -> None:
    check(run_html.run_list([run, replace(run, state="queued", waits_for=ATTACK, position=1)]))
    check(run_html.differences([(ATTACK, ATTACK, None)], ATTACK))
    (tmp_path / "0.mp4").touch()
    data = DataSet(
        name=ATTACK,
        folder=tmp_path,
        shown_folder=ATTACK,
        run=run,
        captions=(ATTACK,),
        shapes=(),
        num_bytes=1,
        problems=((ATTACK, ATTACK),),
        previews={0: tmp_path / "0.mp4"},
    )
    for shown in (data, replace(data, run=None)):
        listed = data_html.data_list([shown])
        check(listed)
        assert "<figcaption>#0 &lt;script" in listed


@pytest.mark.parametrize("state", ["running", "stopped", "failed"])
def test_a_model_shows_text_as_text(state: Any) -> None:
    entry = Registry().models()["wan2.1-t2v-1.3b"]
    entry = replace(entry, preset=entry.preset.model_copy(update={"title": ATTACK}), missing=ATTACK)
    download = DownloadState(state=state, pid=1, error=ATTACK)
    row = ModelRow(entry, 0, download, downloadable=True, needs=ATTACK)
    values: dict[str, Any] = {"rows": [row], "loras": [(ATTACK, True, 1)], "place": ATTACK}
    check(render("models", viewer=False, solvers={"unipc": "UniPC"}, **values))


@pytest.mark.parametrize(
    "draw",
    [
        lambda: compare_html.problems([ATTACK]),
        lambda: compare_html.forecast(Forecast({"A": ATTACK}, [], 0), [], ["A"]),
        lambda: compare_html.history(
            [{"id": "0", "prompt": ATTACK, "variants": ATTACK, "when": ATTACK}]
        ),
        lambda: train_html.problem(ATTACK, ("settings", ATTACK)),
        lambda: render("train_valid", advice=[ATTACK]),
        lambda: render("train_prompts", problem=None, count=1, first=[ATTACK]),
        lambda: render("run_link", run=ATTACK, what="is in the queue"),
        lambda: render("live_error", error=ATTACK),
    ],
)
def test_what_is_said_beside_fields_is_text(draw: Callable[[], str]) -> None:
    check(draw())


def test_a_live_part_shows_why_it_cannot_be_shown() -> None:
    def refuse(name: str) -> str:
        raise ValueError(f"run: there is no run {name}")

    live = draw_live(refuse, lambda *_: {}, "x")
    check(live.show(ATTACK))


def test_every_template_can_be_read_and_says_what_it_misses() -> None:
    for name in TEMPLATES.list_templates():
        TEMPLATES.get_template(name)
    with pytest.raises(UndefinedError, match="run"):
        render("run_link", what="is in the queue")
