"""A link and a run of before the files moved into rooms, opened in the page of today."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.studio.compare import field, wait_until_made
from tests.studio.conftest import PROMPT, App
from tests.test_before import BEFORE, COMPARISON, RUN


@pytest.fixture
def older(tmp_path: Path) -> Iterator[App]:
    """A studio on the data folder of before."""
    shutil.copytree(BEFORE / "data", tmp_path / "data")
    shutil.copytree(BEFORE / "runs", tmp_path / "data" / "runs")
    running = App(tmp_path / "data").start()
    yield running
    running.stop()


def test_a_link_of_before_gives_back_its_comparison(older: App, page: Page) -> None:
    page.goto(f"{older.url}?v={COMPARISON}")
    wait_until_made(page)
    expect(page.locator("#prompt textarea")).to_have_value(PROMPT)
    expect(field(page, "A", "num_inference_steps")).to_have_value("2")
    expect(field(page, "B", "num_inference_steps")).to_have_value("4")
    expect(page.locator("#shared-seed input")).to_have_value("7")
    expect(page.locator("#history b").first).to_have_text(PROMPT)
    page.goto(f"{older.url}?run={RUN}")
    expect(page.get_by_text(RUN).first).to_be_visible()
