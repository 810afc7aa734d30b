"""Clips in the making: previews, cancelling."""

from PIL import Image
from playwright.sync_api import Page, expect

from tests.studio.compare import choose, field, generate, wait_until_made
from tests.studio.conftest import App


def test_a_running_tile_shows_a_preview_and_is_cancelled_and_says_so(
    app: App, compare: Page
) -> None:
    choose(compare, "A", "model", "wan-latents")
    expect(field(compare, "A", "num_inference_steps")).to_have_value("2")
    generate(compare, 900, 1, seed=3)
    preview = compare.locator(".player-tile[data-label=A] .player-preview")
    expect(preview).to_have_js_property("naturalWidth", 64, timeout=60_000)
    (made,) = (app.data / "previews").glob("[!.]*")
    with Image.open(made) as picture:
        assert picture.n_frames == 5  # one for each latent frame
    compare.locator(".player-tile[data-label=A] .player-cancel").click()
    cancelled = compare.locator(".player-tile[data-label=A][data-state=cancelled]")
    expect(cancelled).to_contain_text("Cancelled", timeout=30_000)
    expect(preview).to_have_count(0)
    wait_until_made(compare, 1)
    assert list((app.data / "previews").iterdir()) == []
