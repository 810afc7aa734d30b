"""What a person does in Compare: choose, fill in, press Generate, wait."""

from playwright.sync_api import Locator, Page, expect


def field(page: Page, label: str, name: str) -> Locator:
    return page.locator(f"#variant-{label}-{name} input")


def generate(page: Page, first_steps: int, second_steps: int, seed: int) -> str:
    """Fills in the steps and the seed, presses Generate, and returns the comparison's id."""
    field(page, "A", "num_inference_steps").fill(str(first_steps))
    field(page, "B", "num_inference_steps").fill(str(second_steps))
    page.locator("#shared-seed input").fill(str(seed))
    page.locator("#generate").click()
    expect(page.locator(".player")).to_be_visible()
    page.wait_for_url("**v=*")
    return page.url.split("v=")[1]


def wait_until_made(page: Page, num_clips: int = 2) -> None:
    made = page.locator(".player-tile[data-state=finished] video")
    expect(made).to_have_count(num_clips)


def choose(page: Page, label: str, name: str, option: str) -> None:
    field(page, label, name).click()
    page.get_by_role("option", name=option, exact=True).click()
