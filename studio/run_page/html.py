"""The list of runs and the parts of a run page as HTML: what templates run_*.html are given."""

from collections.abc import Sequence
from typing import Any

from studio.page.markup import render
from studio.page.words import moment, value_at
from studio.run_page import view
from studio.runs.listing import PREPARE, Run, read_launch, read_tree
from studio.runs.status import ALIVE

NOTEWORTHY = ("alarm", "stopped_early", "resumed", "skipped")
MAX_EVENTS = 20
SPARK_WIDTH, SPARK_HEIGHT = 96, 22


def run_list(runs: Sequence[Run]) -> str:
    """A row each."""
    rows = [(run, place(run), spark(view.spark(run.folder))) for run in runs]
    return render("run_list", rows=rows)


def place(run: Run) -> str:
    """Where it trains."""
    return str(run.slurm) if run.slurm else ", ".join(run.devices) or "from a shell"


def spark(curve: view.Curve) -> dict[str, Any] | None:
    """The first loss as a line of its own height; None before there are two points."""
    if len(curve.values) < 2:
        return None
    low, high = min(curve.values), max(curve.values)
    length = curve.steps[-1] - curve.steps[0] or 1
    points = " ".join(
        f"{(step - curve.steps[0]) / length * SPARK_WIDTH:.1f},"
        f"{(high - value) / ((high - low) or 1) * (SPARK_HEIGHT - 2) + 1:.1f}"
        for step, value in zip(curve.steps, curve.values, strict=True)
    )
    box = f"0 0 {SPARK_WIDTH} {SPARK_HEIGHT}"
    return {"box": box, "points": points, "last": curve.values[-1]}


def head(run: Run) -> str:
    """Name, state, progress, and the buttons that make sense in this state."""
    return render(
        "run_head",
        run=run,
        alive=run.state in ALIVE,
        trains=run.method != PREPARE,  # a preparation saves all the time and has no form
        draws=bool(read_tree(run.folder).get("validation")),
    )


def overview(run: Run) -> str:
    """The newest figures, what happened, and how it was started."""
    launch = read_launch(run.folder)
    facts = [
        ("Method", run.method),
        ("Model", run.model),
        ("Where", place(run)),
        ("Started", moment(run.started) if run.started else "not yet"),
        ("Ended", moment(run.ended) if run.ended else ""),
    ]
    figures = [(name, f"{value:.5g}") for name, value in sorted(view.latest(run.folder).items())]
    events = view.newest_events(run.folder, NOTEWORTHY)[:MAX_EVENTS]
    happened = [(event["event"].replace("_", " "), event_text(event)) for event in events]
    tables = [
        ("facts", "Run", facts),
        ("figures", "Newest figures", figures),
        ("events", "Noteworthy", happened),
    ]
    return render("run_overview", tables=tables, command=launch.shell() if launch else "")


def event_text(event: dict[str, object]) -> str:
    shown = {name: value for name, value in event.items() if name not in ("time", "event")}
    return ", ".join(f"{name} {value}" for name, value in shown.items())


def samples(run: Run) -> str:
    """Rows are steps, columns prompts; the teacher first."""
    rows, tree = view.samples(run.folder), read_tree(run.folder)
    prompts = value_at(tree, ("validation", "prompts")) or []
    columns = {name: column_title(name, prompts) for row in rows for name in row.videos}
    validates = tree.get("validation") is not None
    return render("run_samples", rows=rows, columns=columns, validates=validates)


def column_title(name: str, prompts: Sequence[str]) -> str:
    """`02-seed1` -> the prompt and its seed."""
    number, _, seed = name.partition("-")
    known = number.isdecimal() and int(number) < len(prompts)
    return f"{prompts[int(number)]} · {seed}" if known else name


def checkpoints(run: Run) -> str:
    """What can be resumed, and tried in Compare; a checkpoint is exported when it is asked for."""
    export = run.folder / "export"
    exported = export.is_dir() and not (export / "vae").is_dir()
    return render("run_checkpoints", run=run, exported=exported, saved=view.checkpoints(run.folder))


def differences(rows: Sequence[tuple[str, object, object]], other: str) -> str:
    """A table of settings that differ; None is also what a side without this setting has."""
    return render("run_differences", rows=rows, other=other)
