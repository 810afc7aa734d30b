"""The player: two to four videos on one clock, with progress while they are being made.

A `gr.HTML` whose value is what `Studio.status` returns. player.js draws that, polls while something
is unfinished, and puts every text of the user into the page as text, never as HTML.
"""

from collections.abc import Callable
from typing import Any, Protocol

import gradio as gr

from studio.page.handlers import answered
from studio.page.markup import STATIC, render

SCRIPTS = (STATIC / "player_tiles.js", STATIC / "player.js")  # the second calls the first
STYLE = STATIC / "player.css"


class Comparisons(Protocol):
    """What the player asks `Studio` for by itself."""

    def status(self, comparison_id: str) -> dict[str, Any]: ...

    def cancel(self, job_id: int) -> None: ...

    def commands(self, comparison_id: str) -> list[str]: ...

    def export(self, comparison_id: str, suffix: str) -> str: ...


def draw_player(studio: Comparisons, elem_id: str = "player") -> gr.HTML:
    """The player. Not a subclass: for those Gradio writes a stub file beside the module."""
    return gr.HTML(
        value=None,
        html_template=render("player"),
        js_on_load="".join(script.read_text(encoding="utf-8") for script in SCRIPTS),
        apply_default_css=False,
        server_functions=_server_functions(studio),
        elem_id=elem_id,
    )


def _server_functions(studio: Comparisons) -> list[Callable[[Any], dict[str, Any]]]:
    """What the player calls by itself. Any signed-in browser may send anything here."""

    @answered
    def status(comparison_id: Any) -> dict[str, Any]:
        return studio.status(comparison_id)

    @answered
    def cancel(job_id: Any) -> dict[str, Any]:
        studio.cancel(job_id)
        return {}

    @answered
    def commands(comparison_id: Any) -> dict[str, Any]:
        return {"text": "\n".join(studio.commands(comparison_id))}

    @answered
    def export(wanted: Any) -> dict[str, Any]:
        comparison_id, suffix = wanted
        return {"url": studio.export(comparison_id, suffix)}

    return [status, cancel, commands, export]
