"""The queue and the buttons of Runs in a real browser."""

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect

from studio.runs.status import ALIVE
from studio.runs.supervisor import Supervisor
from tests.studio.conftest import App
from tests.studio.runs import TRAINS, queue


@pytest.fixture
def runs(app: App) -> Iterator[Supervisor]:
    """Three runs in the studio's queue; in the end they are gone."""
    supervisor, names = Supervisor(app.data / "runs"), ("one", "two", "three")
    for name in names:
        queue(supervisor, name, TRAINS)
    yield supervisor
    with supervisor._lock:  # the studio starts none of them meanwhile
        for name in names:
            if supervisor.run(name).state in ALIVE:
                supervisor.force_stop(name)
            supervisor.delete(name)


def test_the_queue_is_changed_and_a_run_stopped_resumed_and_ended_by_buttons(
    app: App, page: Page, runs: Supervisor
) -> None:
    page.goto(f"{app.url}?run=none")  # opens the tab; there is no such run
    rows = {
        name: page.locator(f".run-row:has([data-run={name}])") for name in ("one", "two", "three")
    }
    states = {name: row.locator(".run-state") for name, row in rows.items()}
    expect(states["one"]).to_have_text("running")
    expect(rows["two"]).to_contain_text("Waits for cpu, used by one.")
    expect(states["three"]).to_have_text("queued #2")
    rows["three"].get_by_text("↑").click()
    expect(states["three"]).to_have_text("queued #1")
    rows["two"].get_by_text("Remove").click()
    expect(states["two"]).to_have_text("stopped")
    rows["one"].locator(".run-open").press("Enter")
    head = page.locator("#run-head")
    expect(head.locator("h2")).to_have_text("one")
    head.get_by_text("Stop after this step").click()
    expect(head.locator(".run-title .run-state")).to_have_text("stopped")
    head.get_by_text("Resume").click()  # three has the device now
    expect(head.locator(".run-title .run-state")).to_have_text(re.compile("queued"))
    page.locator("#all-runs").click()
    rows["three"].locator(".run-open").click()
    force = head.locator("[data-do=force_stop]")
    expect(head.locator("h2")).to_have_text("three")
    force.click()
    expect(force).to_have_text("Lose what is not saved?")
    force.click()
    expect(head.locator(".run-title .run-state")).to_have_text("stopped")
