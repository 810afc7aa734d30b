"""Runs: all of them, and everything about one."""

from collections.abc import Sequence
from typing import Any

import gradio as gr
import pandas

from studio.page.handlers import PRIVATE, explained
from studio.page.live import draw_live, draw_log, draw_pulse
from studio.page.markup import STATIC
from studio.page.player import draw_player
from studio.run_page import html, view
from studio.run_page.actions import SHIPPED, RunActions
from studio.studio import Studio
from trainers import mirror

TITLE = "Runs"
ORDER = 3
LINK = "run"
STYLE = STATIC / "training.css"
FOR_VIEWERS = False
DRAWN = (  # the figures that the two charts begin with, the first that a run has
    ("student/loss",),
    ("drift/distance", "validation/score", "critic/loss", "step_sec"),
)
PRESET = "preset "  # before a preset's name, where runs are listed too


def build(studio: Studio, page: gr.Blocks) -> None:
    """The list, or one run in its place."""
    assert studio.training is not None
    does = RunActions(studio, studio.training)
    name = gr.State("")
    with gr.Column(elem_id="runs") as overview:
        listed = draw_live(does.show_list, does.act, "run-list")
    with gr.Column(visible=False, elem_id="run") as one:
        back = gr.Button("← All runs", size="sm", min_width=110, elem_id="all-runs")
        head = draw_live(does.shown(html.head), does.act, "run-head")
        parts = [head, *draw_parts(studio, does, name)]

    def opened(run: str) -> dict[Any, Any]:
        if run:
            does.supervisor.run(run)  # refuses what is no run
        updates: dict[Any, Any] = dict.fromkeys(parts, run)
        shown = {overview: gr.update(visible=not run), one: gr.update(visible=bool(run))}
        return updates | {name: run} | shown

    @explained
    def clicked(event: gr.EventData) -> Any:
        return opened(event.run)

    @explained
    def linked(request: gr.Request) -> Any:
        return opened(request.query_params.get("run", ""))

    outputs = [*parts, name, overview, one]
    listed.open(clicked, outputs=outputs, **PRIVATE)
    back.click(lambda: opened(""), outputs=outputs, **PRIVATE)
    head.gone(lambda: opened(""), outputs=outputs, **PRIVATE)
    page.load(linked, outputs=outputs, **PRIVATE)


def draw_parts(studio: Studio, does: RunActions, name: gr.State) -> list[gr.HTML]:
    """The tabs of the run page; returns what takes the run's name as its value."""
    parts = []
    with gr.Tabs(elem_id="run-tabs"):
        with gr.Tab("Overview"):
            parts.append(draw_live(does.shown(html.overview), does.act, "run-overview"))
        with gr.Tab("Samples"):
            parts.append(draw_samples(studio, does, name))
        with gr.Tab("Checkpoints"):
            parts.append(draw_live(does.shown(html.checkpoints), does.act, "run-checkpoints"))
        with gr.Tab("Metrics") as tab:
            draw_metrics(does, name, tab)
        with gr.Tab("Log"):
            parts.append(draw_log(does.read_log, does.find_in_log, "run-log"))
        with gr.Tab("Settings") as tab:
            draw_settings(does, name, tab)
    return parts


def draw_samples(studio: Studio, does: RunActions, name: gr.State) -> gr.HTML:
    """All samples, and the two that were chosen in the player."""
    player = draw_player(studio, "sample-player")
    samples = draw_live(does.shown(html.samples), does.act, "run-samples")

    @explained
    def pair(run: str, event: gr.EventData) -> Any:
        return does.pair(run, event.samples)

    samples.pair(pair, name, player, **PRIVATE)
    name.change(lambda: None, outputs=player, **PRIVATE)
    return samples


# ---------------------------------------------------------------- metrics


def draw_metrics(does: RunActions, name: gr.State, tab: gr.Tab) -> None:
    """Two figures side by side, of one run or of several."""
    with gr.Row():
        runs = gr.Dropdown(
            [],
            multiselect=True,
            label="Runs",
            info="Drawn over each other; shipped ones are how our own runs of a preset went",
            elem_id="plot-runs",
        )
        smoothing = gr.Slider(
            0,
            0.99,
            value=0,
            step=0.01,
            label="Smoothing",
            info="How much of the average so far each point keeps",
        )
    pickers, plots = [], []
    with gr.Row():
        for number in range(len(DRAWN)):
            with gr.Column(min_width=300):
                pickers.append(gr.Dropdown([], label="Figure", elem_id=f"figure-{number}"))
                plots.append(
                    gr.LinePlot(x="step", y="value", color="run", height=300, show_label=False)
                )
    for package in mirror.installed():
        gr.Markdown(f"`python -m trainers.mirror runs/NAME --to {package}` follows a run there.")
    pulse = draw_pulse()

    def draw(names: list[str], smooth: float, *picked: str | None) -> list[pandas.DataFrame]:
        return [frame(does, names, figure, smooth) for figure in picked]

    @explained
    def begin(run: str) -> Any:
        if not run:
            return [gr.skip()] * 5
        shipped = [SHIPPED + preset for preset in does.shipped_curves(run)]
        others = [*(other.name for other in does.supervisor.runs()), *shipped]
        drawn = [*shipped[:1], run]  # the newest on top
        known = view.figures(does.supervisor.run(run).folder)
        chosen = [first_known(wanted, known) for wanted in DRAWN]
        updates = [gr.update(choices=known, value=figure) for figure in chosen]
        return gr.update(choices=others, value=drawn), *updates, *draw(drawn, 0, *chosen)

    inputs = [runs, smoothing, *pickers]
    gr.on([tab.select, name.change], begin, name, [runs, *pickers, *plots], **PRIVATE)
    changes = [component.input for component in inputs]
    gr.on(changes, draw, inputs, plots, **PRIVATE)
    pulse.look(draw, inputs, plots, **PRIVATE)


def first_known(wanted: Sequence[str], known: Sequence[str]) -> str | None:
    """The first that there is, else any."""
    return next((each for each in wanted if each in known), known[0] if known else None)


def frame(
    does: RunActions, names: Sequence[str], figure: str | None, smoothing: float
) -> pandas.DataFrame:
    """The points of a figure in all these runs."""
    rows = []
    for name in names if figure else ():
        curve = does.curve(name, str(figure), smoothing)
        rows += [(step, value, name) for step, value in zip(curve.steps, curve.values, strict=True)]
    return pandas.DataFrame(rows, columns=["step", "value", "run"])


# ---------------------------------------------------------------- settings


def draw_settings(does: RunActions, name: gr.State, tab: gr.Tab) -> None:
    """The run's config.yaml, and where it differs from a preset or another run."""
    other = gr.Dropdown(
        [],
        label="Differences to",
        info="A preset of the same method, or another run",
        elem_id="settings-other",
    )
    rows = gr.HTML(apply_default_css=False, elem_id="settings-diff")
    with gr.Accordion("config.yaml", open=False):
        text = gr.Code(language="yaml", interactive=False, show_label=False, buttons=["copy"])

    @explained
    def compare(run: str, chosen: str | None) -> Any:
        if not run or not chosen:
            return ""
        is_preset = chosen.startswith(PRESET)
        preset = chosen.removeprefix(PRESET) if is_preset else None
        return does.differences(run, preset, None if is_preset else chosen)

    @explained
    def begin(run: str) -> Any:
        if not run:
            return gr.skip(), gr.skip(), gr.skip()
        presets, runs = does.comparable(run)
        choices = [*(PRESET + preset for preset in presets), *runs]
        near = does.nearest_preset(run, presets)
        chosen = PRESET + near if near else next(iter(choices), None)
        update = gr.update(choices=choices, value=chosen)
        return update, compare(run, chosen), does.config_text(run)

    gr.on([tab.select, name.change], begin, name, [other, rows, text], **PRIVATE)
    other.input(compare, [name, other], rows, **PRIVATE)
