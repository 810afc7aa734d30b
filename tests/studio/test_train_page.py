"""Train and Runs in a real browser, and that a viewer and a stranger get none of it."""

import json
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, expect

from pipelines.catalog.registry import Registry
from studio.compare.html import field_id
from tests.conftest import HANG_SEC
from tests.studio.conftest import App, no_scroll_sideways

RUN = "from-the-form"
SMALL = {
    "name": RUN,
    "num_steps": "4",
    "data.prompts.batch_size": "1",
    "data.prompts.num_frames": "5",
    "algorithm.student.warmup_steps": "0",
    "log_every": "1",
    "validation.every": "2",
    "validation.prompts": "a small red circle moving left on a black background",
    "validation.num_frames": "5",
    "validation.num_inference_steps": "1",
    "validation.seeds": "0",
}


def field(page: Page, name: str) -> Locator:
    return page.locator(f"#settings [name='{name}']")


def test_a_run_is_started_from_the_form_and_watched_to_its_end(app: App, page: Page) -> None:
    page.goto(app.url)
    page.get_by_role("tab", name="Train").click()
    page.locator("#method input").click()
    page.get_by_role("option").filter(has_text="dmd2 ·").click()
    expect(page.locator("#set-name")).to_be_visible()
    for fold in ("set-algorithm", "set-algorithm-student", "set-validation", "set-rest"):
        page.locator(f"#{fold} > summary").click()
    field(page, "validation.used").check()
    field(page, "compile_blocks").uncheck()
    for name, text in SMALL.items():
        field(page, name).fill(text)
    field(page, "num_steps").fill("0")
    expect(page.locator("#train-check .problem")).to_contain_text("num_steps")
    field(page, "num_steps").fill(SMALL["num_steps"])
    expect(page.locator("#train-check .valid")).to_be_visible()
    expect(page.locator("#train-command")).to_contain_text(f"{RUN}/config.yaml")
    expect(page.locator("#data-preview")).to_contain_text("small red circle")
    page.locator("#start-now").click()
    page.locator("#train-said a").click()
    head = page.locator("#run-head")
    expect(head.locator("h2")).to_have_text(RUN)
    figures = page.locator("#run-overview")
    expect(figures).to_contain_text("student/loss")  # live: the run still goes on
    expect(head.locator(".run-title .run-state")).to_have_text("finished")
    page.get_by_role("tab", name="Samples").click()
    expect(page.locator("#run-samples video")).to_have_count(3)
    ready = "[...document.querySelectorAll('#run-samples video')].every((v) => v.readyState > 0)"
    page.wait_for_function(ready)
    page.locator("#run-samples .sample").first.click()
    page.locator("#run-samples .sample").last.press("Enter")
    expect(page.locator("#sample-player video")).to_have_count(2)
    expect(page.locator("#sample-player .player-title")).to_have_text(["teacher", "step 2"])
    page.get_by_role("tab", name="Metrics").click()
    expect(page.locator("#plot-runs")).to_contain_text("shipped tiny_")
    page.get_by_role("tab", name="Log").click()
    expect(page.locator(".log-lines")).to_contain_text("step 4/4")
    page.get_by_role("tab", name="Settings").click()
    expect(page.locator("#settings-diff")).to_contain_text("num_steps")
    page.locator("#all-runs").click()
    row = page.locator(".run-row", has_text=RUN)
    expect(row).to_contain_text("finished")
    expect(row.locator("polyline")).to_have_count(1)
    no_scroll_sideways(page)


def test_an_exported_student_opens_in_compare(app: App, page: Page) -> None:
    page.goto(f"{app.url}?run={RUN}")
    page.get_by_role("tab", name="Checkpoints").click()
    page.locator(".run-export").get_by_text("Try in Compare").click()
    page.wait_for_url("**v=*")
    comparison = app.store.comparison(page.url.split("v=")[1])
    assert comparison is not None
    assert [cell.recipe.model for cell in comparison.cells] == ["tiny-wan", RUN]


def test_a_checkpoint_opens_in_compare_and_is_a_choice_there(app: App, page: Page) -> None:
    page.goto(f"{app.url}?run={RUN}")
    page.get_by_role("tab", name="Checkpoints").click()
    page.locator(".checkpoint button").first.click()
    page.wait_for_url("**v=*")
    comparison = app.store.comparison(page.url.split("v=")[1])
    assert comparison is not None
    assert [cell.recipe.model for cell in comparison.cells] == ["tiny-wan", f"{RUN}@4"]
    expect(page.locator("#player video")).to_have_count(2)
    chosen = page.locator(f"#{field_id('B', 'model')} input")
    expect(chosen).to_have_value(f"{RUN}@4 (distilled)")


def test_a_student_that_is_kept_is_a_model_of_its_own(app: App, page: Page) -> None:
    page.goto(f"{app.url}?run={RUN}")
    page.get_by_role("tab", name="Checkpoints").click()
    row = page.locator(".run-export")
    row.locator("input").fill("../kept")
    row.get_by_text("Keep as a model").click()
    note = page.locator("#run-checkpoints .live-note")
    expect(note).to_have_text(re.compile("^model: use up to 64 letters"))
    row.locator("input").fill("kept")
    row.get_by_text("Keep as a model").click()
    expect(note).to_contain_text("kept is a model now")
    row.get_by_text("Keep as a model").click()
    expect(note).to_contain_text("there is a model kept already")
    kept = Registry(runs_dir=app.data / "runs").models()["kept"]
    assert (kept.base, kept.missing) == ("tiny-wan", None)


def test_a_clone_has_the_settings_of_the_run_and_a_name_of_its_own(app: App, page: Page) -> None:
    page.goto(f"{app.url}?train={RUN}")
    expect(field(page, "name")).to_have_value(f"{RUN}-2")
    assert field(page, "validation.prompts").input_value() == SMALL["validation.prompts"]
    no_scroll_sideways(page)


def test_a_run_is_deleted_after_a_second_click_and_lies_in_the_trash(app: App, page: Page) -> None:
    page.goto(f"{app.url}?run={RUN}")
    delete = page.locator("#run-head [data-do=delete]")
    delete.click()
    expect(delete).to_have_text("Move to the trash?")
    assert (app.data / "runs" / RUN).is_dir()
    delete.click()
    expect(page.locator("#run-list")).to_be_visible()
    assert not (app.data / "runs" / RUN).exists()
    assert (app.data / "runs" / "models" / "kept").is_dir()
    (trashed,) = (app.data / "runs" / ".trash").glob(f"{RUN}*")
    assert (trashed / "config.yaml").is_file()


# Over raw HTTP

PARTS = ("run-list", "run-head", "run-overview", "run-log", "settings", "start-now", "method")


def post(app: App, path: str, body: dict[str, Any]) -> tuple[int, str]:
    """Status and text of the answer."""
    request = urllib.request.Request(
        f"{app.url}gradio_api/{path}",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=HANG_SEC) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def config(app: App) -> dict[str, Any]:
    found: dict[str, Any] = json.load(urllib.request.urlopen(app.url + "config", timeout=HANG_SEC))
    return found


def call(app: App, part: dict[str, Any], function: str, data: object) -> tuple[int, str]:
    body = {"session_hash": "x", "component_id": part["id"], "fn_name": function, "data": data}
    return post(app, "component_server/", body)


@pytest.mark.parametrize("data", [["../x", "delete"], ["$(id)", "stop"], ["x", "rm"], [1, None]])
def test_actions_refuse_what_is_no_run(app: App, data: list[object]) -> None:
    parts = {c["props"].get("elem_id"): c for c in config(app)["components"]}
    status, text = call(app, parts["run-list"], "act", [*data, ""])
    assert status == 200
    assert re.search("there is no (run|action)", text)


@pytest.fixture(scope="module")
def viewer(app: App) -> Iterator[App]:
    watching = App(app.data).start("--viewer")
    yield watching
    watching.stop()


def test_a_viewer_has_nothing_of_train_and_runs(app: App, viewer: App) -> None:
    own, seen = config(app), config(viewer)
    ids = {c["props"].get("elem_id") for c in seen["components"]}
    assert set(PARTS) <= {c["props"].get("elem_id") for c in own["components"]}
    assert not ids & set(PARTS)
    known = {c["id"] for c in seen["components"]}
    for part in (c for c in own["components"] if c["props"].get("elem_id") in PARTS):
        for function in ("act", "show", "read"):
            status, text = call(viewer, part, function, ["x", "delete"])
            assert part["id"] in known or status != 200, text  # the id may be another component's
            assert "there is no run" not in text
    for event in own["dependencies"][len(seen["dependencies"]) :]:
        body = {"data": [], "fn_index": event["id"], "session_hash": "x"}
        assert post(viewer, "queue/join", body)[0] != 200
    file = app.data / "runs" / "queue.json"
    assert get(f"{viewer.url}gradio_api/file={file}") == 403


def get(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=HANG_SEC) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_a_stranger_gets_nothing_of_a_protected_studio(tmp_path: Path) -> None:
    protected = App(tmp_path / "protected").start("--auth", "me:secret")
    try:
        assert get(protected.url + "config") == 401
        for path in ("queue/join", "component_server/", "run/predict", "upload"):
            bodies = {"session_hash": "x", "data": ["x", "delete"], "fn_index": 1}
            status, text = post(protected, path, bodies | {"component_id": 1, "fn_name": "act"})
            assert status == 401, (path, text)
        log = protected.data / "runs" / ".lock"
        assert get(f"{protected.url}gradio_api/file={log}") == 401
    finally:
        protected.stop()
