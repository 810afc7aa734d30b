"""Models in a real browser, with a hub in this process that serves TinyWan as Wan2.1 1.3B."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect

from pipelines.catalog.registry import Registry
from tests.pipelines.hub import Hub, repository, serve
from tests.studio.conftest import TINY_WAN, App, no_scroll_sideways, wait_for

NAME, SOURCE = "wan2.1-t2v-1.3b", "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with serve({SOURCE: repository(TINY_WAN)}) as hub:
        yield hub


@pytest.fixture(scope="module")
def app(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    """A studio with an own folder of models, to download into."""
    data = tmp_path_factory.mktemp("studio")
    (data / "models").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_ENDPOINT", hub.url)
        running = App(data).start("--models", str(data / "models"))
    yield running
    if running.process.poll() is None:
        running.stop()


@pytest.fixture
def row(app: App, page: Page) -> Locator:
    page.goto(app.url)
    page.get_by_role("tab", name="Models").click()
    found = page.locator(f".model-row[data-key='{NAME}']")
    expect(found).to_be_visible()
    return found


def press(row: Locator, action: str) -> None:
    row.locator(f"[data-do={action}]").click()


def test_a_download_asks_first_can_be_stopped_and_outlives_the_studio(
    app: App, hub: Hub, page: Page, row: Locator
) -> None:
    no_scroll_sideways(page)
    state = row.locator(".model-state")
    expect(state).to_have_text("missing")
    hub.stall_after = 2**20
    press(row, "download")
    expect(row.locator("[data-do=download]")).to_contain_text("licence Apache-2.0")
    assert hub.ranges == []
    press(row, "download")
    expect(state).to_have_text("downloading")
    expect(row.locator("progress")).to_be_visible()
    wait_for(lambda: any(path.endswith(".safetensors") for path, _ in hub.ranges))
    press(row, "stop")
    expect(state).to_have_text("incomplete")
    expect(row.locator(".model-reason")).to_contain_text("The download was stopped")

    num_asked = len(hub.ranges)
    press(row, "download")
    press(row, "download")
    wait_for(lambda: len(hub.ranges) > num_asked)
    app.kill()
    hub.go_on.set()
    registry = Registry([app.data / "models"])
    wait_for(lambda: registry.models()[NAME].missing is None)
    weights = Path("transformer/diffusion_pytorch_model.safetensors")
    target = app.data / "models" / Path(SOURCE).name
    assert (target / weights).read_bytes() == (TINY_WAN / weights).read_bytes()
