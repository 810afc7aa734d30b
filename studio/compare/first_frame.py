"""The image that videos start from, in Compare: shown where a chosen model continues one."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from studio.compare.images import Example


@dataclass(frozen=True)
class FirstFrame:
    """What is seen of the image, its name in the studio, and examples to start from."""

    image: gr.Image
    name: gr.Textbox
    examples: gr.Dataset
    row: gr.Row

    @property
    def outputs(self) -> list[Any]:
        """What `filled` updates."""
        return [self.name, self.image, self.row]

    def filled(self, name: str, path: Path) -> dict[Any, Any]:
        """Updates that show an image of the studio."""
        shown = {self.row: gr.update(visible=True), self.image: gr.update(value=str(path))}
        return {self.name: name, **shown}


def draw_first_frame(examples: Sequence[Example], visible: bool) -> FirstFrame:
    """An image of one's own, or an example, which brings its prompt."""
    with gr.Row(visible=visible, elem_id="first-frame") as row:
        image = gr.Image(
            label="First frame",
            sources=["upload", "clipboard"],
            type="filepath",
            image_mode=None,  # the file as it was uploaded
            height=180,
            min_width=260,
            buttons=[],
            placeholder="Drop or paste the image that the video starts from",
            elem_id="first-frame-image",
        )
        dataset = gr.Dataset(
            label="Examples, with their prompts",
            components=[gr.Image(visible=False)],
            samples=[[str(example.image)] for example in examples],
            type="index",
            min_width=260,
            elem_id="first-frame-examples",
        )
        name = gr.Textbox(visible=False)
    return FirstFrame(image, name, dataset, row)
