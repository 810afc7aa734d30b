"""Clips in the making: previews, cancelling, and how the models lie in memory meanwhile."""

from PIL import Image
from playwright.sync_api import Page, expect

from pipelines.video import read_recipe
from studio.clips.workers import clip_path
from tests.studio.compare import choose, field, generate, wait_until_made
from tests.studio.conftest import App


def test_a_running_tile_shows_a_preview_and_is_cancelled_and_says_so(
    app: App, compare: Page
) -> None:
    choose(compare, "A", "model", "wan-latents")
    expect(field(compare, "A", "num_inference_steps")).to_have_value("2")
    generate(compare, 900, 1, seed=3)
    preview = compare.locator(".player-tile[data-label=A] .player-preview")
    expect(preview).to_have_js_property("naturalWidth", 64)
    (made,) = (app.data / "previews").glob("[!.]*")
    with Image.open(made) as picture:
        assert picture.n_frames == 5  # one for each latent frame
    compare.locator(".player-tile[data-label=A] .player-cancel").click()
    cancelled = compare.locator(".player-tile[data-label=A][data-state=cancelled]")
    expect(cancelled).to_contain_text("Cancelled")
    expect(preview).to_have_count(0)
    wait_until_made(compare, 1)
    assert list((app.data / "previews").iterdir()) == []


def test_memory_is_chosen_for_all_explained_and_part_of_the_clip(app: App, compare: Page) -> None:
    memory = compare.locator("#memory")
    expect(memory).to_contain_text("All on the device")
    plain = generate(compare, 2, 1, seed=12)
    wait_until_made(compare)
    memory.get_by_label("Fit to the device").check()
    expect(memory).to_contain_text("after a first clip you read here")
    expect(compare.locator("#forecast")).not_to_contain_text("already made")
    compare.locator("#generate").click()
    expect(compare.locator(".player-detail").first).to_contain_text("memory fit")
    wait_until_made(compare)
    expect(memory).to_contain_text("Last time: on a CPU everything lies in RAM.")
    fitted = compare.url.split("v=")[1]
    made = [app.store.comparison(comparison) for comparison in (plain, fitted)]
    recipes = [[cell.recipe for cell in one.cells] for one in made if one is not None]
    assert [[recipe.memory for recipe in both] for both in recipes] == [
        ["plain", "plain"],
        ["fit", "fit"],
    ]
    assert not {r.key() for r in recipes[0]} & {r.key() for r in recipes[1]}
    assert read_recipe(clip_path(app.data, recipes[1][0].key())) == recipes[1][0]
    compare.reload()
    expect(memory.get_by_label("Fit to the device")).to_be_checked()
    expect(compare.locator("#forecast")).to_contain_text("2 of 2 already made")
