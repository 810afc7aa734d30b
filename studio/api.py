"""The public API: five named endpoints for `gradio_client` and plain HTTP."""

from html import escape
from typing import Any

import gradio as gr

from studio.compare.variants import Variant
from studio.page.handlers import refusing
from studio.studio import Studio


def register(studio: Studio) -> None:
    """Adds the endpoints to the page that is being built."""

    def submit_compare(
        prompt: str, variants: list[dict[str, Any]], image: str = "", memory: str = ""
    ) -> str:
        """Queues one clip for each variant (its fields: `Variant`); returns the comparison's id.

        `image` is what add_image returned, for models that take one; `memory` is plain, fit or
        settings, and empty what the studio was started with.
        """
        made = [Variant.model_validate(variant) for variant in variants]
        return studio.submit(made, prompt, image, memory)

    def job_status(comparison: str) -> dict[str, Any]:
        """State, progress, metrics and link of every clip of a comparison."""
        return studio.status(comparison)

    def cancel_job(job: int) -> str:
        """Cancels the job with this number; job_status names it."""
        studio.cancel(job)
        return "cancelled"

    def list_models() -> list[dict[str, Any]]:
        """Name, title, kind and own sampler of every model, and what is missing."""
        return [
            {
                "name": name,
                "title": entry.preset.title,
                "kind": entry.preset.kind,
                "available": entry.missing is None,
                "takes_image": entry.preset.takes_image,
                "sampler": entry.preset.sampler.model_dump(),
            }
            for name, entry in studio.registry.models().items()
        ]

    def get_recipe(comparison: str, label: str) -> dict[str, Any]:
        """The full recipe of one variant of a comparison."""
        return studio.recipe(comparison, label).model_dump(mode="json")

    for endpoint in (submit_compare, job_status, cancel_job, list_models, get_recipe):
        gr.api(refusing(_fail)(endpoint), api_name=endpoint.__name__)


def _fail(text: str) -> None:
    """Answers in a way that a client reads as an error."""
    raise gr.Error(escape(text))
