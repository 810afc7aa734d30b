"""The page: theme, header, and one tab for each file in the folder studio/tabs."""

import importlib
import pkgutil
from pathlib import Path
from typing import Any, Protocol, cast

import gradio as gr

from studio import api
from studio import tabs as folder
from studio.page import player
from studio.page.handlers import PRIVATE
from studio.page.markup import STATIC, render
from studio.runs.devices import memory_lines
from studio.studio import Studio

TITLE = "Wan distillation studio"


class Tab(Protocol):
    """What a file in studio/tabs says of itself."""

    TITLE: str
    ORDER: int  # tabs stand from the smallest to the largest
    LINK: str | None  # the parameter of the page's address that opens the tab
    STYLE: Path | None  # a css file
    FOR_VIEWERS: bool  # else it is not built for them, so that nothing of it can be called

    def build(self, studio: Studio, page: gr.Blocks) -> None: ...


def find_tabs() -> list[Tab]:
    """All tabs in the order of the page."""
    names = [found.name for found in pkgutil.iter_modules(folder.__path__)]
    tabs = [cast(Tab, importlib.import_module(f"{folder.__name__}.{name}")) for name in names]
    return sorted(tabs, key=lambda tab: tab.ORDER)


def find_styles() -> list[Path]:
    """The css files of the page, each once; of two that say different things the later counts."""
    own = [tab.STYLE for tab in find_tabs() if tab.STYLE is not None]
    return list(dict.fromkeys([STATIC / "studio.css", *own, player.STYLE]))


def theme() -> gr.Theme:
    """Calm greys and one blue, in fonts that come with Gradio."""
    return gr.themes.Default(
        primary_hue="blue", neutral_hue="slate", radius_size="md", spacing_size="md"
    )


def build_page(studio: Studio, devices: list[str]) -> gr.Blocks:
    """The whole page, not launched."""
    found = [tab for tab in find_tabs() if tab.FOR_VIEWERS or not studio.viewer]

    def linked(request: gr.Request) -> Any:
        asked = next((tab for tab in found if tab.LINK in request.query_params), None)
        return gr.skip() if asked is None else gr.Tabs(selected=asked.TITLE.lower())

    with gr.Blocks(
        title=TITLE, fill_width=True, analytics_enabled=False, delete_cache=(3600, 86400)
    ) as page:
        draw_header(studio, devices)
        with gr.Tabs() as tabs:
            for tab in found:
                with gr.Tab(tab.TITLE, id=tab.TITLE.lower()):
                    tab.build(studio, page)
        if not studio.viewer:
            page.load(linked, outputs=tabs, **PRIVATE)
        api.register(studio)
    return page


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
        html_template=render("header", title=TITLE),
        js_on_load=(STATIC / "header.js").read_text(encoding="utf-8"),
        apply_default_css=False,
        server_functions=[machine],
        elem_id="header",
    )
