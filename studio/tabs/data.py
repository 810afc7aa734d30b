"""Data: look at videos or prompts, prepare them, see what was stored."""

from collections.abc import Mapping
from typing import Any

import gradio as gr
from gradio.components import Component

from studio.compare.panels import model_choices
from studio.data import html
from studio.data.preparing import Preparing
from studio.page.handlers import explained, require_action
from studio.page.live import draw_live
from studio.page.markup import STATIC, render
from studio.run_page.actions import RunActions
from studio.runs.listing import PREPARE, free_name
from studio.studio import Studio

TITLE = "Data"
ORDER = 4
LINK = None
STYLE = STATIC / "data.css"
FOR_VIEWERS = False
OWN = "Empty: the model's own"
REQUIRED = ("source", "model", "name")
NOTES = {
    "stop": "It stops after this video; what is prepared is kept.",
    "resume": "It goes on with what is missing.",
    "unqueue": "It is out of the queue; resume puts it back.",
    "delete": "It is in the trash, in .trash of the runs folder.",
}
SLOW: dict[str, Any] = {
    "api_visibility": "private",
    "show_progress": "minimal",
    "concurrency_limit": 1,
    "concurrency_id": "look",
}


def build(studio: Studio, page: gr.Blocks) -> None:
    """The source and its settings above, below them what there is."""
    assert studio.training is not None
    preparing = Preparing(studio.training)
    fields = draw_fields(studio, preparing)
    known = studio.training.devices()
    with gr.Row(elem_id="data-start"):
        devices = gr.CheckboxGroup(
            known,
            value=known[:1],
            label="Devices",
            info="One process each; it waits until they are free",
            elem_id="data-devices",
        )
        look_button = gr.Button("Look at the source", min_width=230, elem_id="data-look")
        start_button = gr.Button("Prepare", variant="primary", min_width=160, elem_id="prepare")
    said = gr.HTML(apply_default_css=False, elem_id="data-said")
    seen = gr.HTML(apply_default_css=False, elem_id="data-seen", min_height=20)
    draw_list(studio, preparing)

    @explained
    def look(*values: Any) -> str:
        studio.require_maker()
        return html.look(preparing.look(read(fields, values)))

    @explained
    def start(chosen: list[str], *values: Any) -> Any:
        studio.require_maker()
        name = preparing.start(read(fields, values), chosen)
        new_name = free_name(preparing.supervisor.runs_dir, name)
        said = render("run_link", run=name, what="is prepared once its devices are free")
        return said, new_name

    inputs = list(fields.values())
    look_button.click(look, inputs, seen, **SLOW)
    start_button.click(start, [devices, *inputs], [said, fields["name"]], **SLOW)


def draw_fields(studio: Studio, preparing: Preparing) -> dict[str, Component]:
    """The settings by their name in `trainers.settings.prepare`."""
    with gr.Row():
        source = gr.Textbox(
            label="Source",
            info="On this machine: a folder of videos with .txt captions beside them, a .csv, "
            ".jsonl or .json list, FastVideo's .parquet folder, or a .txt list of prompts",
            placeholder="/data/videos",
            scale=3,
            min_width=280,
            elem_id="data-source",
        )
        model = gr.Dropdown(
            model_choices(studio.registry),
            value=studio.first_model(),
            label="Model",
            info="Its VAE and text encoder encode",
            scale=2,
            min_width=220,
            elem_id="data-model",
        )
    name = free_name(preparing.supervisor.runs_dir, "my-data")
    with gr.Row():
        texts = {
            "name": draw_text("name", "Name", "Of the folder in runs/", name),
            "size": draw_text("size", "Sizes", f"832x480, 480x832. {OWN}"),
            "frames": draw_text("frames", "Frames", f"4n+1. {OWN}"),
            "fps": draw_text("fps", "Frames a second", OWN),
            "clips_per_video": draw_text(
                "clips", "Clips a video", "At most; no scene cut in any. Empty: 1"
            ),
        }
    return {"source": source, "model": model, **texts}


def draw_text(name: str, label: str, info: str, value: str = "") -> gr.Textbox:
    """Numbers too: an empty gr.Number comes back as 0."""
    return gr.Textbox(value, label=label, info=info, min_width=110, elem_id=f"data-{name}")


def read(fields: Mapping[str, Component], values: tuple[Any, ...]) -> dict[str, Any]:
    """The form as a tree. ValueError where something is not given."""
    texts = (str(value or "").strip() for value in values)
    given = {name: text for name, text in zip(fields, texts, strict=True) if text}
    missing = next((name for name in REQUIRED if name not in given), None)
    if missing is not None:
        raise ValueError(f"{missing}: give one first")
    sizes = given.pop("size", "").replace(",", " ").split()
    return {"method": PREPARE, "size": sizes, **given}


def draw_list(studio: Studio, preparing: Preparing) -> None:
    """All data sets, looked at again while they can be seen."""
    assert studio.training is not None
    does = RunActions(studio, studio.training)

    def show(_: str) -> str:
        return html.data_list(preparing.data_sets())

    def act(name: str, action: str, _: str) -> dict[str, Any]:
        require_action(action, NOTES)
        does.act(name, action)
        return {"note": NOTES[action]}

    draw_live(show, act, "data-list")
