"""Data in a real browser, and that a viewer gets none of it."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.studio.conftest import App, no_scroll_sideways
from tests.studio.test_train_page import call, config, get
from tests.trainers.videos import write_shapes
from trainers.data.prepared import PreparedFolder

NAME = "from-the-page"
HOSTILE = '<img src=x onerror="document.title = 1">'
PARTS = ("data-list", "data-source", "prepare")


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two good clips, one with a hostile caption and one without any."""
    folder = write_shapes(tmp_path_factory.mktemp("videos"), num_videos=4, num_frames=5, side=64)
    (folder / "01.txt").write_text(HOSTILE)
    (folder / "03.txt").unlink()
    return folder


def open_data(page: Page, app: App, source: Path, **fields: str) -> None:
    page.goto(app.url)
    page.get_by_role("tab", name="Data").click()
    for name, text in {"source": str(source), "frames": "5", **fields}.items():
        page.locator(f"#data-{name} :is(input, textarea)").fill(text)


def test_a_source_is_looked_at_prepared_and_shown(app: App, page: Page, videos: Path) -> None:
    open_data(page, app, videos, name=NAME)
    page.locator("#data-look").click()
    seen = page.locator("#data-seen")
    expect(seen).to_contain_text("3 of 4 videos can be prepared: size 64x64")
    expect(seen.locator("tr").nth(1)).to_contain_text("it has no caption")
    expect(seen).to_contain_text(HOSTILE)
    page.locator("#prepare").click()
    expect(page.locator("#data-said a")).to_have_text(NAME)
    expect(page.locator("#data-name input, #data-name textarea")).to_have_value(f"{NAME}-2")
    made = page.locator(".data-head", has_text=NAME)
    expect(made.locator(".run-state")).to_have_text("finished")
    expect(made).to_contain_text("3 samples · 64x64, 5 frames")
    expect(made.locator("code")).to_have_text(str(app.data / "runs" / NAME))
    expect(made.locator("summary")).to_contain_text("1 x it has no caption")
    expect(page.locator("#data-list figure")).to_have_count(3)
    expect(page.locator("#data-list figcaption").nth(1)).to_contain_text(HOSTILE)
    page.wait_for_function("document.querySelector('#data-list video').readyState > 0")
    assert page.title() != "1"
    assert len(PreparedFolder(app.data / "runs" / NAME).captions) == 3
    no_scroll_sideways(page)


def test_a_bad_setting_is_said_and_nothing_is_made(app: App, page: Page, videos: Path) -> None:
    open_data(page, app, videos, name="never", frames="6")
    page.locator("#prepare").click()
    expect(page.get_by_text("4n+1; try 5")).to_be_visible()
    for name, text in {"source": str(videos / "nowhere"), "frames": "5"}.items():
        page.locator(f"#data-{name} :is(input, textarea)").fill(text)
    page.locator("#data-look").click()
    expect(page.get_by_text("does not exist; check the path")).to_be_visible()
    assert not (app.data / "runs" / "never").exists()


def test_a_preparation_is_listed_among_the_runs_without_what_it_cannot_do(
    app: App, page: Page
) -> None:
    page.goto(f"{app.url}?run={NAME}")
    head = page.locator("#run-head")
    expect(head.locator("h2")).to_have_text(NAME)
    expect(head.locator("[data-do=delete]")).to_be_visible()
    assert not head.get_by_text("Clone").count()


@pytest.fixture(scope="module")
def viewer(app: App) -> Iterator[App]:
    watching = App(app.data).start("--viewer")
    yield watching
    watching.stop()


def test_a_viewer_has_nothing_of_data(app: App, viewer: App) -> None:
    own, seen = config(app), config(viewer)
    ids = {c["props"].get("elem_id") for c in seen["components"]}
    assert set(PARTS) <= {c["props"].get("elem_id") for c in own["components"]}
    assert not ids & set(PARTS)
    (listed,) = [c for c in own["components"] if c["props"].get("elem_id") == "data-list"]
    for function in ("show", "act"):
        status, text = call(viewer, listed, function, [NAME, "delete", ""])
        assert status != 200 or NAME not in text
    preview = next((app.data / "runs" / NAME / "previews").glob("*.mp4"))
    assert get(f"{app.url}gradio_api/file={preview}") == 200
    assert get(f"{viewer.url}gradio_api/file={preview}") == 403


def test_the_list_refuses_what_is_no_preparation(app: App) -> None:
    (listed,) = [c for c in config(app)["components"] if c["props"].get("elem_id") == "data-list"]
    for asked in ("../x delete", "x save", f"{NAME} force_stop", "1 "):
        status, text = call(app, listed, "act", [*asked.split(" "), ""])
        assert status == 200
        assert "error" in json.loads(text)
    assert (app.data / "runs" / NAME / "index.json").is_file()
