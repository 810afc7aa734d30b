"""Handlers of events and clicks: how a refusal of theirs reaches the page."""

from collections.abc import Callable, Container, Sequence
from functools import wraps
from html import escape
from typing import Any

import gradio as gr
from gradio.components import Component

from studio.page.words import sentence

PRIVATE: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
Updates = dict[Component, Any]
Handler = Callable[..., Any]
TWIN_MS = 1000  # in which the same choice is not a new one
STAMP = "(last, _, ...values) => [last, Date.now(), ...values]"


def refusing(respond: Callable[[str], Any]) -> Callable[[Handler], Handler]:
    """A decorator: a ValueError of the handler becomes what `respond` makes of its sentence."""

    def decorate(handler: Handler) -> Handler:
        @wraps(handler)
        def call(*values: Any) -> Any:
            try:
                return handler(*values)
            except ValueError as error:
                return respond(sentence(error))

        return call

    return decorate


def warn(text: str) -> Any:
    """Shows a message over the page, which stays as it is.

    Not `gr.Error`, which would also cover the player. Gradio draws messages as HTML, so what the
    user wrote is escaped.
    """
    gr.Warning(escape(text), duration=15)
    return gr.skip()


explained = refusing(warn)  # for events
answered = refusing(lambda text: {"error": text})  # for functions that the page's scripts call


def require_action(action: object, known: Container[str]) -> None:
    """ValueError for an action that no button has; browsers may send anything."""
    if not isinstance(action, str) or action not in known:
        raise ValueError(f"action: there is no action {str(action)[:40]!r}; reload the page")


def on_choice(
    chosen: gr.Dropdown,
    handler: Callable[..., Updates],
    inputs: Sequence[Component],
    outputs: Sequence[Component],
) -> None:
    """Calls a handler when the user has chosen; a ValueError becomes a message in the page.

    A Dropdown says `input` twice for one choice with the mouse (Gradio 6.31), and the second answer
    would undo what was typed since the first. So the same values soon again are passed over: soon
    by the browser's clock, as a busy server may come to the second one late.
    """
    last = gr.State(((), 0.0))
    now = gr.Number(visible=False)  # milliseconds, written by STAMP

    @explained
    def answer(before: tuple[tuple[Any, ...], float], now_ms: float, *values: Any) -> Any:
        if values == before[0] and now_ms - before[1] < TWIN_MS:
            return gr.skip()
        return handler(*values) | {last: (values, now_ms)}

    chosen.input(answer, [last, now, *inputs], [last, *outputs], js=STAMP, **PRIVATE)
