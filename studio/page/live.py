"""HTML parts of the page that are asked for again while they can be seen, and the log.

No queue and no timer of Gradio: a server function answers each look, and live.js replaces only
what has changed.
"""

from collections.abc import Callable
from typing import Any

import gradio as gr

from studio.page.handlers import answered, refusing
from studio.page.markup import STATIC, render

Show = Callable[[str], str]
Act = Callable[[str, str, str], dict[str, Any]]


def draw_live(show: Show, act: Act, elem_id: str) -> gr.HTML:
    """HTML whose value is the name of a run, or nothing. `show` makes it, `act` does a click.

    `act` gets the run, the action and the text of the field that belongs to the button, if any.
    """

    @refusing(lambda error: render("live_error", error=error))
    def shown(name: Any) -> str:
        return show(name)

    @answered
    def acted(asked: Any) -> dict[str, Any]:
        name, action, text = asked
        return act(name, action, str(text))

    shown.__name__, acted.__name__ = "show", "act"  # what live.js calls
    return draw_scripted("live", [shown, acted], elem_id)


def draw_log(
    read: Callable[[str, int], dict[str, Any]], find: Callable[[str, str], list[str]], elem_id: str
) -> gr.HTML:
    """The log of the run that is its value."""

    @answered
    def read_part(asked: Any) -> dict[str, Any]:
        name, offset = asked
        return read(name, int(offset))

    @refusing(lambda error: {"lines": [], "error": error})
    def find_lines(asked: Any) -> dict[str, Any]:
        name, text = asked
        return {"lines": find(name, str(text))}

    read_part.__name__, find_lines.__name__ = "read", "find"  # what log.js calls
    return draw_scripted("log", [read_part, find_lines], elem_id)


def draw_scripted(name: str, functions: list[Callable[..., Any]], elem_id: str) -> gr.HTML:
    """NAME.html, which NAME.js fills with what it asks these functions."""
    return gr.HTML(
        value=None,
        html_template=render(name),
        js_on_load=(STATIC / f"{name}.js").read_text(encoding="utf-8"),
        apply_default_css=False,
        server_functions=functions,
        elem_id=elem_id,
    )


def draw_pulse() -> gr.HTML:
    """Fires `look` every few seconds while it can be seen, which gr.Timer does not know."""
    script = """
    setInterval(() => {
      if (!document.hidden && element.querySelector("i").offsetParent !== null) trigger("look");
    }, 5000);
    """
    return gr.HTML(html_template="<i></i>", js_on_load=script, apply_default_css=False)
