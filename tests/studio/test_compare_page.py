"""Compare in a real browser: what a person presses, sees and finds again."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, Route, expect

from pipelines.video import read_recipe
from studio.clips.workers import clip_path
from tests.studio.compare import choose, field, generate, wait_until_made
from tests.studio.conftest import PAGE_MS, PROMPT, App, no_scroll_sideways, wait_for

TIMES = "() => [...document.querySelectorAll('.player-tile video')].map((v) => v.currentTime)"
# after a drawn frame; null while one of them seeks, as both do at the loop point, or has to load
STEADY_TIMES = """() => new Promise((resolve) => requestAnimationFrame(() => {
    const videos = [...document.querySelectorAll('.player-tile video')];
    const steady = videos.every((v) => !v.seeking && v.readyState >= 2);
    resolve(steady ? videos.map((v) => v.currentTime) : null);
}))"""
FRAME_SEC = 1 / 8
ATTACK = """<img src=x onerror="window.hacked=1"> "quoted" ' ../../etc ${1+1} {{value}} `x`"""


def spread(page: Page) -> float:
    times = page.evaluate(TIMES)
    return max(times) - min(times)


@pytest.fixture(scope="module")
def playing(app: App, browser: Browser) -> Iterator[Page]:
    """A page on which A with 3 steps and B with 1 are playing."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(PAGE_MS)
    page.goto(app.url)
    expect(page.locator("#forecast")).not_to_be_empty()
    generate(page, 3, 1, seed=1)
    wait_until_made(page)
    yield page
    page.close()


def test_two_variants_are_made_and_play_in_step(playing: Page) -> None:
    playing.wait_for_function("document.querySelector('.player-playing video').currentTime > 0.2")
    seen: list[list[float]] = []

    def has_turned() -> bool:
        if (times := playing.evaluate(STEADY_TIMES)) is not None:
            seen.append(times)
        return len(seen) >= 25 and max(map(max, seen)) > 1.5

    wait_for(has_turned, pause_sec=0.1)
    assert all(max(times) - min(times) < FRAME_SEC for times in seen)
    metrics = playing.locator(".player-tile").nth(1).locator(".player-metrics")
    expect(metrics).to_contain_text("forwards2")
    expect(metrics).to_contain_text("denoise vs A")
    expect(playing.locator("#forecast")).to_contain_text("2 of 2 already made")
    no_scroll_sideways(playing)


def test_a_video_that_falls_behind_is_brought_back(playing: Page) -> None:
    playing.wait_for_function("document.querySelector('.player-playing video').currentTime > 0.2")
    playing.evaluate(
        f"document.querySelectorAll('.player-tile video')[1].currentTime += {8 * FRAME_SEC}"
    )
    wait_for(lambda: spread(playing) < FRAME_SEC)


def test_the_controls_move_both_videos_together(playing: Page) -> None:
    playing.locator("[data-do=toggle]").click()
    playing.locator(".player-scrub").fill("4")
    expect(playing.locator(".player-frame")).to_have_text("5/17")
    playing.locator(".player-prompt").click()
    for key, frame in ((".", "6/17"), (",", "5/17"), ("ArrowRight", "6/17"), ("ArrowLeft", "5/17")):
        playing.keyboard.press(key)
        expect(playing.locator(".player-frame")).to_have_text(frame)
    assert spread(playing) == 0
    playing.locator(".player-speed").select_option("2")
    rates = "[...document.querySelectorAll('.player-tile video')].map((v) => v.playbackRate)"
    assert playing.evaluate(rates) == [2, 2]
    playing.locator(".player-prompt").click()
    playing.keyboard.press("2")
    expect(playing.locator(".player-tile[data-label=A]")).to_be_hidden()
    playing.keyboard.press("2")
    expect(playing.locator(".player-tile[data-label=A]")).to_be_visible()
    playing.keyboard.press("w")
    expect(playing.locator(".player-wipe")).to_be_visible()
    boxes = [playing.locator(".player-tile video").nth(i).bounding_box() for i in range(2)]
    assert boxes[0] == boxes[1]
    playing.keyboard.press(" ")
    expect(playing.locator(".player")).to_have_class(re.compile("player-playing"))


def test_a_tab_closed_in_the_middle_loses_nothing(app: App, compare: Page) -> None:
    comparison_id = generate(compare, 40, 2, seed=2)
    compare.wait_for_function("document.querySelector('.player-phase')?.textContent.includes('/')")
    context = compare.context
    compare.close()
    wait_for(lambda: not app.store.jobs("running") and not app.store.jobs("queued"))
    again = context.new_page()
    again.goto(f"{app.url}?v={comparison_id}")
    wait_until_made(again)
    expect(field(again, "A", "num_inference_steps")).to_have_value("40")
    expect(field(again, "B", "num_inference_steps")).to_have_value("2")
    expect(again.locator("#shared-seed input")).to_have_value("2")
    expect(again.locator(".player-prompt")).to_have_text(PROMPT)


def test_what_a_user_writes_stays_text(app: App, compare: Page) -> None:
    compare.locator("#prompt textarea").fill(ATTACK)
    comparison_id = generate(compare, 1, 1, seed=4)
    wait_until_made(compare)
    expect(compare.locator(".player-prompt")).to_have_text(ATTACK)
    compare.goto(f"{app.url}?v={comparison_id}")
    wait_until_made(compare)
    expect(compare.locator("#prompt textarea")).to_have_value(ATTACK)
    expect(compare.locator("#history b").first).to_have_text(ATTACK)
    compare.locator("#shared-size textarea").fill(ATTACK)
    expect(compare.locator("#forecast .problems li").first).to_contain_text("onerror")
    compare.locator("#generate").click()
    expect(compare.get_by_test_id("toast-text")).to_contain_text(ATTACK[:37])
    assert compare.evaluate("window.hacked") is None


def test_what_differs_is_marked_and_what_cannot_work_is_said_before_it_runs(compare: Page) -> None:
    expect(field(compare, "B", "num_inference_steps")).to_have_css("font-weight", "600")
    expect(field(compare, "B", "flow_shift")).to_have_css("font-weight", "400")
    choose(compare, "B", "model", "student")
    expect(field(compare, "B", "num_inference_steps")).to_have_value("2")
    expect(field(compare, "B", "guidance_scale")).to_have_value("1")
    expect(compare.locator("#forecast .problems")).to_have_count(0)
    field(compare, "B", "guidance_scale").fill("5")
    expect(compare.locator("#forecast .problems")).to_contain_text("Variant B: guidance_scale is 5")
    compare.locator("#generate").click()
    expect(compare.get_by_test_id("toast-text")).to_contain_text("guidance_scale is 5")
    choose(compare, "B", "model", "Wan2.1 T2V 1.3B (missing)")
    expect(compare.locator("#forecast .problems")).to_contain_text("--models")


def test_unlocked_fields_move_into_the_variants(app: App, compare: Page) -> None:
    compare.locator("#locks").get_by_label("Seed").click()
    expect(compare.locator("#shared-seed")).to_be_hidden()
    field(compare, "A", "seed").fill("5")
    field(compare, "B", "seed").fill("6")
    field(compare, "A", "num_inference_steps").fill("1")
    field(compare, "B", "num_inference_steps").fill("1")
    compare.locator("#generate").click()
    wait_until_made(compare)
    comparison = app.store.comparison(compare.url.split("v=")[1])
    assert comparison is not None
    assert [cell.recipe.seed for cell in comparison.cells] == [5, 6]
    compare.reload()
    expect(field(compare, "B", "seed")).to_have_value("6")
    expect(compare.locator("#shared-seed")).to_be_hidden()


def test_a_clip_with_a_lora_fills_a_variant_again_and_is_made_at_four_alphas(
    app: App, compare: Page
) -> None:
    expect(field(compare, "A", "lora_2")).to_be_hidden()
    choose(compare, "A", "lora", "style")
    expect(compare.locator("#variant-A-lora")).to_contain_text("diffusers: 1 of 1 layers, rank 4")
    expect(field(compare, "A", "lora_2")).to_be_visible()
    field(compare, "A", "lora_alpha").fill("2")
    field(compare, "A", "strength").fill("0.5")
    comparison_id = generate(compare, 1, 1, seed=7)
    wait_until_made(compare)
    comparison = app.store.comparison(comparison_id)
    assert comparison is not None
    recipe = comparison.cells[0].recipe
    assert [(a.lora_alpha, a.strength) for a in recipe.adapters] == [(2, 0.5)]
    clip = clip_path(app.data, recipe.key())
    assert read_recipe(clip) == recipe
    compare.goto(app.url)
    compare.locator("#from-video").get_by_text("Settings from a video").click()
    compare.locator("#from-video input[type=file]").set_input_files(clip)
    expect(field(compare, "A", "lora_alpha")).to_have_value("2")
    expect(field(compare, "A", "strength")).to_have_value("0.5")
    expect(field(compare, "A", "num_inference_steps")).to_have_value("1")
    expect(field(compare, "B", "num_inference_steps")).to_have_value("4")
    expect(compare.locator("#variant-B-sweep")).to_be_hidden()
    compare.set_viewport_size({"width": 390, "height": 844})
    compare.locator("#variant-A-sweep").press("Enter")
    wait_until_made(compare, 4)
    for label, alpha in zip("ABCD", "0234", strict=True):  # the file has rank 4 and no alpha
        expect(field(compare, label, "lora_alpha")).to_have_value(alpha)
        tile = compare.locator(f".player-tile[data-label={label}] .player-title")
        expect(tile).to_have_text(f"TinyWan + style (lora_alpha {alpha}), 1 step")
    expect(compare.locator(".player")).to_be_in_viewport()
    expect(compare.locator("#forecast")).to_contain_text("4 of 4 already made")


def test_what_is_typed_right_after_a_choice_stays(compare: Page) -> None:
    asked: list[str] = []
    twins: list[Route] = []

    def hold_twins(route: Route) -> None:
        question = re.sub(r"\b\d{13}\b", "", route.request.post_data or "")  # but for its time
        is_twin = question in asked and PROMPT not in question
        asked.append(question)
        if is_twin:
            twins.append(route)
        else:
            route.continue_()

    compare.route("**/queue/join*", hold_twins)
    choose(compare, "A", "lora", "style")
    field(compare, "A", "lora_alpha").fill("2")
    # without end where Gradio no longer repeats itself: then page.handlers.on_choice can go
    wait_for(lambda: compare.wait_for_timeout(50) or twins)
    for route in twins:
        route.continue_()
    compare.wait_for_timeout(1000)
    expect(field(compare, "A", "lora_alpha")).to_have_value("2")


def test_more_variants_can_be_added_and_exported_side_by_side(app: App, compare: Page) -> None:
    compare.locator("#add-variant").click()
    expect(field(compare, "C", "num_inference_steps")).to_be_visible()
    field(compare, "C", "num_inference_steps").fill("2")
    comparison_id = generate(compare, 1, 1, seed=8)
    wait_until_made(compare, 3)
    for kind in ("mp4", "gif"):
        with compare.expect_download() as download:
            compare.locator(f"[data-do={kind}]").click()
        assert download.value.suggested_filename == f"{comparison_id}-ABC.{kind}"
        assert (app.data / "exports" / f"{comparison_id}-ABC.{kind}").stat().st_size > 1000


def test_an_unknown_link_opens_an_empty_page_with_a_sentence(app: App, compare: Page) -> None:
    compare.goto(f"{app.url}?v=../../etc/passwd")
    expect(compare.get_by_text("does not exist here")).to_be_visible()
    expect(compare.locator(".player")).to_be_hidden()


def test_an_image_is_asked_for_shown_with_its_clip_and_found_again_by_the_link(
    app: App, compare: Page, tmp_path: Path
) -> None:
    row = compare.locator("#first-frame")
    expect(row).to_be_hidden()
    choose(compare, "A", "model", "TinyWan image-to-video")
    expect(row).to_be_visible()
    expect(compare.locator("#forecast")).to_contain_text("Variant A: image is missing")
    picture = tmp_path / "red.png"
    Image.new("RGB", (32, 32), (200, 30, 30)).save(picture)
    compare.locator("#first-frame-image input[type=file]").set_input_files(picture)
    expect(compare.locator("#forecast")).not_to_contain_text("image is missing")
    comparison_id = generate(compare, 1, 1, seed=11)
    wait_until_made(compare)
    image = compare.locator(".player-tile[data-label=A] .player-first-frame")
    assert image.evaluate("(node) => node.naturalWidth") == 32
    expect(compare.locator(".player-tile[data-label=B] .player-first-frame")).to_have_count(0)
    comparison = app.store.comparison(comparison_id)
    assert comparison is not None
    assert [cell.recipe.image is not None for cell in comparison.cells] == [True, False]
    compare.reload()
    expect(row.locator("img").first).to_be_visible()
    expect(compare.locator("#forecast")).to_contain_text("2 of 2 already made")
    compare.locator("#first-frame-examples img").nth(2).click()
    expect(compare.locator("#prompt textarea")).to_have_value(re.compile("white triangle"))
    expect(compare.locator("#forecast")).not_to_contain_text("already made")
