"""Train: method, preset, form; what it will take; then the queue."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from studio.page.handlers import PRIVATE, Updates, explained, on_choice
from studio.page.markup import STATIC, render
from studio.runs.launch import Devices, num_ranks
from studio.studio import Studio
from studio.train import html
from studio.train.device_choice import DeviceChoice, draw_device_choice
from studio.train.estimate import make_plan
from studio.train.schemas import Tree, descriptions
from studio.train.training import DEFAULTS, Training

TITLE = "Train"
ORDER = 2
LINK = "train"
STYLE = STATIC / "training.css"
FOR_VIEWERS = False
ESSENTIALS = (("name",), ("model",), ("num_steps",), ("algorithm", "student", "learning_rate"))
NO_RUN = ""
SCRIPT = STATIC / "form.js"
LIVE: dict[str, Any] = {"trigger_mode": "always_last", **PRIVATE}


@dataclass(frozen=True)
class Start:
    """What a run starts with."""

    training: Training
    method: gr.Dropdown
    settings: gr.HTML  # its value is {"html": ...} from here, {"values": ...} from the page
    place: DeviceChoice

    @property
    def inputs(self) -> list[gr.components.Component]:
        """In the order that `read` expects."""
        return [self.method, self.settings, *self.place.inputs]

    def read(
        self, method: str | None, settings: Mapping[str, Any] | None, *place: Any
    ) -> tuple[Tree, Devices]:
        """The tree and the devices. ValueError naming the field that cannot be read."""
        if method is None or not settings or "values" not in settings:
            raise ValueError("method: choose one first")
        tree = {**self.training.form(method).read(settings["values"]), "method": method}
        return tree, self.place.read(*place)

    def checked(self, *values: Any) -> tuple[Tree, Devices]:
        """The whole, valid configuration and the devices. ValueError naming the field."""
        tree, devices = self.read(*values)
        checked = self.training.check(tree)
        if checked.tree is None:
            raise ValueError(checked.problem)
        return checked.tree, devices


def build(studio: Studio, page: gr.Blocks) -> None:
    """Method and preset above; settings on the left, essentials first; on the right the rest."""
    training = studio.training
    assert training is not None
    method, preset = draw_choice()
    with gr.Row(visible=False, elem_id="train") as row:
        with gr.Column(scale=3, min_width=300):
            settings = gr.HTML(
                value=None,
                html_template="<form></form>",
                js_on_load=SCRIPT.read_text(encoding="utf-8"),
                apply_default_css=False,
                elem_id="settings",
            )
        with gr.Column(scale=2, min_width=300, elem_id="train-start"):
            start = Start(training, method, settings, draw_device_choice(training.devices()))
            draw_check(start)
            draw_plan(start)
            draw_buttons(start)
    wire_choice(start, page, preset, row)


def draw_choice() -> tuple[gr.Dropdown, gr.Dropdown]:
    with gr.Row(elem_id="train-choice"):
        method = gr.Dropdown(
            [(f"{name} · {text}", name) for name, text in descriptions().items()],
            value=None,
            label="Method",
            info="How the student learns. Choose one to begin.",
            scale=3,
            min_width=300,
            elem_id="method",
        )
        preset = gr.Dropdown(
            [],
            label="Preset",
            info="Settings that belong together; change what you like below",
            scale=2,
            min_width=240,
            elem_id="preset",
        )
    return method, preset


def wire_choice(start: Start, page: gr.Blocks, preset: gr.Dropdown, row: gr.Row) -> None:
    """A method brings its presets, a preset its settings, a link `?train=RUN` those of a run."""
    training = start.training

    def drawn(method: str, tree: Tree) -> dict[Any, Any]:
        html = training.form(method).draw(tree, ESSENTIALS, hidden="method")
        return {start.settings: {"html": html}, row: gr.update(visible=True)}

    def choices(method: str) -> list[tuple[str, str]]:
        return [*((name, name) for name in training.presets(method)), ("defaults", DEFAULTS)]

    def choose_method(method: str) -> Updates:
        first = training.first_preset(method)
        update = {preset: gr.update(choices=choices(method), value=first)}
        return update | drawn(method, training.preset(method, first))

    def choose_preset(method: str, name: str) -> Updates:
        return drawn(method, training.preset(method, name))

    @explained
    def load(request: gr.Request) -> Any:
        run = request.query_params.get("train")
        if run is None:
            return gr.skip()
        tree, devices = training.supervisor.clone(run)
        method = str(tree.get("method"))
        updates = {start.method: method, preset: gr.update(choices=choices(method), value=None)}
        return updates | start.place.filled(devices) | drawn(method, tree)

    outputs = [preset, start.settings, row]
    on_choice(start.method, choose_method, [start.method], outputs)
    on_choice(preset, choose_preset, [start.method, preset], outputs)
    page.load(load, outputs=[start.method, *start.place.outputs, *outputs], **PRIVATE)


def draw_check(start: Start) -> None:
    """Whether the settings are valid, the data and the command, all while typing."""
    verdict = gr.HTML(apply_default_css=False, elem_id="train-check")
    preview = gr.HTML(apply_default_css=False, elem_id="data-preview")
    command = gr.Code(
        language="shell",
        lines=1,
        label="Command",
        interactive=False,
        wrap_lines=True,
        show_line_numbers=False,
        buttons=["copy"],
        elem_id="train-command",
    )

    def show(*values: Any) -> tuple[Any, Any]:
        try:
            tree, devices = start.read(*values)
            shell = start.training.command(tree.get("name", "NAME"), devices)
        except ValueError as error:
            return f"# {error}", gr.skip()
        return shell, html.preview(start.training, tree.get("data", {}))

    def check(*values: Any) -> str:
        try:
            tree, devices = start.read(*values)
        except ValueError as error:
            return html.problem(str(error), ())
        checked = start.training.check(tree)
        if checked.tree is None:
            return html.problem(checked.problem, checked.path)
        advice = start.training.advice(checked.tree, num_ranks(devices))
        return render("train_valid", advice=advice)

    for event in (start.settings.edit, *(field.change for field in start.place.inputs)):
        event(show, start.inputs, [command, preview], **LIVE)
        event(check, start.inputs, verdict, **LIVE)


def draw_plan(start: Start) -> None:
    """What it will take, when asked."""
    button = gr.Button("What will it take?", elem_id="plan")
    shown = gr.HTML(apply_default_css=False, elem_id="train-plan", min_height=40)

    @explained
    def plan(*values: Any) -> str:
        tree, devices = start.checked(*values)
        made = make_plan(tree, num_ranks(devices))
        return render("plan", plan=made, num_steps=tree["num_steps"])

    event = {"api_visibility": "private", "concurrency_limit": 1, "concurrency_id": "plan"}
    button.click(plan, start.inputs, shown, **event)


def draw_buttons(start: Start) -> None:
    """Queue, start, or try two steps first."""
    training = start.training
    after = gr.Dropdown(
        [("do not wait", NO_RUN)],
        value=NO_RUN,
        label="After another run",
        info="Waits until that run is finished",
        elem_id="after",
    )
    with gr.Row(elem_id="train-buttons"):
        queue = gr.Button("Add to queue", min_width=130, elem_id="add-to-queue")
        trial = gr.Button("Try 2 steps", min_width=130, elem_id="trial")
        now = gr.Button("Start now", variant="primary", min_width=130, elem_id="start-now")
    said = gr.HTML(apply_default_css=False, elem_id="train-said")

    def link(run: str, what: str) -> str:
        return render("run_link", run=run, what=what)

    def waitable() -> Any:
        names = [run.name for run in training.supervisor.runs() if run.state != "finished"]
        return gr.update(choices=[("do not wait", NO_RUN), *((name, name) for name in names)])

    def submit(values: Sequence[Any], first: bool) -> str:
        tree, devices = start.checked(*values[1:])
        return training.supervisor.submit(tree, devices, values[0] or None, first)

    @explained
    def add(*values: Any) -> str:
        return link(submit(values, first=False), "is in the queue")

    @explained
    def begin(*values: Any) -> str:
        return link(submit(values, first=True), "starts when its devices are free")

    @explained
    def try_steps(*values: Any) -> str:
        tree, devices = start.checked(*values[1:])
        return link(training.trial(tree, devices), "trains two steps")

    after.focus(waitable, outputs=after, **PRIVATE)
    for button, handler in ((queue, add), (now, begin), (trial, try_steps)):
        button.click(handler, [after, *start.inputs], said, **PRIVATE)
