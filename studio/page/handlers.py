"""How a refusal reaches the page."""

import time
from collections.abc import Callable, Sequence
from functools import wraps
from html import escape
from typing import Any

import gradio as gr
from gradio.components import Component

from studio.page.words import sentence

PRIVATE: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
Updates = dict[Component, Any]


def explained(handler: Callable[..., Any]) -> Callable[..., Any]:
    """A ValueError becomes a message in the page, and the page stays as it is.

    Not `gr.Error`, which would also cover the player. Gradio draws messages as HTML, so what the
    user wrote is escaped.
    """

    @wraps(handler)
    def call(*values: Any) -> Any:
        try:
            return handler(*values)
        except ValueError as error:
            gr.Warning(escape(sentence(error)), duration=15)
            return gr.skip()

    return call


TWIN_SEC = 2.0


def on_choice(
    chosen: gr.Dropdown,
    handler: Callable[..., Updates],
    inputs: Sequence[Component],
    outputs: Sequence[Component],
) -> None:
    """Calls a handler when the user has chosen; a ValueError becomes a message in the page.

    A Dropdown says `input` twice for one choice with the mouse (Gradio 6.31), and the second answer
    would undo what was typed since the first. So the same values soon again are passed over.
    """
    answered = gr.State(((), 0.0))

    @explained
    def answer(before: tuple[tuple[Any, ...], float], *values: Any) -> Any:
        now = time.monotonic()
        if values == before[0] and now - before[1] < TWIN_SEC:
            return gr.skip()
        updates = handler(*values)
        return updates | {answered: (values, time.monotonic())}

    chosen.input(answer, [answered, *inputs], [answered, *outputs], **PRIVATE)
