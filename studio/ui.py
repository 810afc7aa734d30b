"""The page: theme, header, and one tab for each module in TABS."""

from typing import Any

import gradio as gr

from studio import api
from studio.page import player
from studio.page.handlers import PRIVATE
from studio.page.markup import STATIC
from studio.runs.devices import memory_lines
from studio.studio import Studio
from studio.tabs import compare, data, models, runs, train

TABS = (
    compare,
    train,
    runs,
    data,
    models,
)  # in order; a tab is a module with TITLE and build(studio, page)
VIEWER_TABS = (compare, models)  # the others are not built, so that nothing of them can be called
LINKS = {"v": compare, "train": train, "run": runs}  # the tab that a link opens, by its parameter
TITLE = "Wan distillation studio"
STYLES = (
    *(STATIC / name for name in ("studio.css", "training.css", "data.css", "models.css")),
    player.STYLE,
)
HEADER_SCRIPT = STATIC / "header.js"
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
        with gr.Tabs() as tabs:
            for tab in VIEWER_TABS if studio.viewer else TABS:
                with gr.Tab(tab.TITLE, id=tab.TITLE.lower()):
                    tab.build(studio, page)
        if not studio.viewer:
            page.load(linked_tab, outputs=tabs, **PRIVATE)
        api.register(studio)
    return page


def linked_tab(request: gr.Request) -> Any:
    """Opens the tab that the page's address asks for."""
    asked = next((tab for name, tab in LINKS.items() if name in request.query_params), None)
    return gr.skip() if asked is None else gr.Tabs(selected=asked.TITLE.lower())


def draw_header(studio: Studio, devices: list[str]) -> None:
    """Title, memory of the devices, state of the queue, and the switch between light and dark."""

    def machine(_: Any) -> dict[str, Any]:
        running, queued = (
            len(studio.store.jobs("running")),
            len(studio.store.jobs("queued")),
        )
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
