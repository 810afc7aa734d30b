"""Parts of the page that look after themselves: HTML that is asked for again while it can be seen.

No queue and no timer of Gradio: a server function answers each look, and live.js replaces only
what has changed.
"""

from collections.abc import Callable
from html import escape
from typing import Any

import gradio as gr

from studio.page.markup import STATIC
from studio.page.words import sentence

LIVE = '<p class="live-note" role="status"></p><div class="live"></div>'
LOG = """
<div class="log-bar">
  <input class="log-search" type="search" aria-label="Search the log"
    placeholder="Search the whole log, then Enter">
  <label><input class="log-follow" type="checkbox" checked> Follow</label>
  <a class="button log-download" download="log.txt">Download</a>
</div>
<pre class="log-found"></pre>
<pre class="log-lines" tabindex="0" aria-label="Log"></pre>
"""

Show = Callable[[str], str]
Act = Callable[[str, str, str], dict[str, Any]]


def draw_live(show: Show, act: Act, elem_id: str) -> gr.HTML:
    """HTML whose value is the name of a run, or nothing. `show` makes it, `act` does a click.

    `act` gets the run, the action and the text of the field that belongs to the button, if any.
    """

    def shown(name: Any) -> str:
        answer = answered(lambda: {"html": show(name)})
        return str(answer.get("html", f'<p data-key="error">{escape(answer.get("error", ""))}</p>'))

    def acted(asked: Any) -> dict[str, Any]:
        name, action, text = asked
        return answered(lambda: act(name, action, str(text)))

    shown.__name__, acted.__name__ = "show", "act"  # what live.js calls
    return draw_scripted("live.js", LIVE, [shown, acted], elem_id)


def draw_log(
    read: Callable[[str, int], dict[str, Any]], find: Callable[[str, str], list[str]], elem_id: str
) -> gr.HTML:
    """The log of the run that is its value."""

    def read_part(asked: Any) -> dict[str, Any]:
        name, offset = asked
        return answered(lambda: read(name, int(offset)))

    def find_lines(asked: Any) -> dict[str, Any]:
        name, text = asked
        return {"lines": [], **answered(lambda: {"lines": find(name, str(text))})}

    read_part.__name__, find_lines.__name__ = "read", "find"  # what log.js calls
    return draw_scripted("log.js", LOG, [read_part, find_lines], elem_id)


def draw_scripted(
    script: str, template: str, functions: list[Callable[..., Any]], elem_id: str
) -> gr.HTML:
    return gr.HTML(
        value=None,
        html_template=template,
        js_on_load=(STATIC / script).read_text(encoding="utf-8"),
        apply_default_css=False,
        server_functions=functions,
        elem_id=elem_id,
    )


def answered(call: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """An error is part of the answer, so that the page can show it."""
    try:
        return call()
    except ValueError as error:
        return {"error": sentence(error)}


def draw_pulse() -> gr.HTML:
    """Fires `look` every few seconds while it can be seen, which gr.Timer does not know."""
    script = """
    setInterval(() => {
      if (!document.hidden && element.querySelector("i").offsetParent !== null) trigger("look");
    }, 5000);
    """
    return gr.HTML(html_template="<i></i>", js_on_load=script, apply_default_css=False)
