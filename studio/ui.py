"""The page: theme, header, and one tab for each module in TABS."""

from pathlib import Path
from typing import Any

import gradio as gr

from studio import api, player
from studio.devices import memory_lines
from studio.studio import Studio
from studio.tabs import compare

TABS = (compare,)  # in order; a tab is a module with TITLE and build(studio, page)
TITLE = "Wan distillation studio"
STYLES = (Path(__file__).with_name("studio.css"), player.STYLE)
HEADER_SCRIPT = Path(__file__).with_name("header.js")
HEADER = f"""
<header class="studio-header">
  <h1>{TITLE}</h1>
  <span class="studio-status" role="status"></span>
  <button type="button" class="studio-theme" aria-label="Light or dark">◐</button>
</header>
"""


def theme() -> gr.Theme:
    """Calm greys and one blue, in fonts that come with Gradio."""
    return gr.themes.Default(
        primary_hue="blue", neutral_hue="slate", radius_size="md", spacing_size="md"
    )


def build_page(studio: Studio, devices: list[str]) -> gr.Blocks:
    """The whole page, not launched."""
    with gr.Blocks(
        title=TITLE, fill_width=True, analytics_enabled=False, delete_cache=(3600, 86400)
    ) as page:
        draw_header(studio, devices)
        with gr.Tabs():
            for tab in TABS:
                with gr.Tab(tab.TITLE, id=tab.TITLE.lower()):
                    tab.build(studio, page)
        api.register(studio)
    return page


def draw_header(studio: Studio, devices: list[str]) -> None:
    """Title, memory of the devices, state of the queue, and the switch between light and dark."""

    def machine(_: Any) -> dict[str, Any]:
        running, queued = len(studio.store.jobs("running")), len(studio.store.jobs("queued"))
        memory = [] if studio.viewer else memory_lines(devices)
        return {"running": running, "queued": queued, "memory": memory, "viewer": studio.viewer}

    gr.HTML(
        value=None,
        html_template=HEADER,
        js_on_load=HEADER_SCRIPT.read_text(encoding="utf-8"),
        apply_default_css=False,
        server_functions=[machine],
        elem_id="header",
    )
