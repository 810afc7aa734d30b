"""How a refusal reaches the page."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import gradio as gr

from studio.compare.html import escape
from studio.studio import sentence


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
