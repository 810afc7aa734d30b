"""Runs as HTML. Everything that a user or a trainer wrote goes through `escape`.

The children that carry `data-key` are replaced one by one, so that what did not change stays:
live.js compares them with those of its last look.
"""

import time
from collections.abc import Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

from studio.page.words import FILE_ROUTE, duration, value_at
from studio.run_page import view
from studio.runs.listing import ALIVE, PREPARE, Run, read_launch, read_tree

STATE_HINTS = {
    "queued": "waits for its devices",
    "starting": "loads its models",
    "running": "trains",
    "stopping": "ends after this step, with a checkpoint",
    "finished": "all steps are done",
    "stopped": "on request; can be resumed",
    "failed": "ended by itself",
    "lost": "its process is gone; can be resumed",
}
NOTEWORTHY = ("alarm", "stopped_early", "resumed", "skipped")
SPARK_WIDTH, SPARK_HEIGHT = 96, 22


def block(key: str, html: str, kind: str = "") -> str:
    """A part that is replaced only when it changes."""
    return f'<div data-key="{escape(key)}" class="{kind}">{html}</div>'


def run_list(runs: Sequence[Run]) -> str:
    """A row each."""
    if not runs:
        return block("none", "<p>No runs yet. Start one in Train.</p>", "run-none")
    return "".join(block(run.name, row(run), "run-row") for run in runs)


def row(run: Run) -> str:
    name = escape(run.name)
    step = f"{run.step:,} / {run.num_steps:,}" if run.num_steps else ""
    return (
        f'<button type="button" class="run-open" data-do="open" data-run="{name}">{name}</button>'
        f'<span class="run-method">{escape(run.method)}</span>{state(run)}'
        f'<span class="run-step">{step}{bar(run)}</span>'
        f'<span class="run-eta">{when(run)}</span>'
        f'<span class="run-device">{escape(place(run))}</span>'
        f"{spark(view.spark(run.folder))}"
        f'<span class="run-buttons">{queue_buttons(run)}</span>{reason(run)}'
    )


def place(run: Run) -> str:
    """Where it trains."""
    return str(run.slurm) if run.slurm else ", ".join(run.devices) or "from a shell"


def state(run: Run) -> str:
    place = f" #{run.position}" if run.position else ""
    hint = STATE_HINTS[run.state]
    return (
        f'<span class="run-state" data-state="{run.state}" title="{hint}">{run.state}{place}</span>'
    )


def reason(run: Run) -> str:
    """Why it waits or how it ended."""
    text = f"Waits for {run.waits_for}." if run.waits_for else run.reason
    return f'<span class="run-reason">{escape(text)}</span>' if text else ""


def bar(run: Run) -> str:
    if not run.num_steps:
        return ""
    return f'<progress max="{run.num_steps}" value="{run.step}" aria-label="steps"></progress>'


def when(run: Run) -> str:
    """Time left, or when it ended."""
    if run.eta_sec is not None:
        return f"{duration(run.eta_sec)} left"
    return moment(run.ended) if run.ended else ""


def moment(seconds: float) -> str:
    return time.strftime("%d %b %H:%M", time.localtime(seconds))


def spark(curve: view.Curve) -> str:
    """The first loss as a line of its own height."""
    if len(curve.values) < 2:
        return '<span class="run-spark"></span>'
    low, high = min(curve.values), max(curve.values)
    last = curve.steps[-1] - curve.steps[0] or 1
    points = " ".join(
        f"{(step - curve.steps[0]) / last * SPARK_WIDTH:.1f},"
        f"{(high - value) / ((high - low) or 1) * (SPARK_HEIGHT - 2) + 1:.1f}"
        for step, value in zip(curve.steps, curve.values, strict=True)
    )
    return (
        f'<svg class="run-spark" viewBox="0 0 {SPARK_WIDTH} {SPARK_HEIGHT}" role="img">'
        f"<title>loss, last {curve.values[-1]:.4g}</title>"
        f'<polyline points="{points}"/></svg>'
    )


def button(run: Run, action: str, text: str, confirm: str = "") -> str:
    asked = f' data-confirm="{escape(confirm)}"' if confirm else ""
    name = escape(run.name)
    return f'<button type="button" data-do="{action}" data-run="{name}"{asked}>{text}</button>'


def queue_buttons(run: Run) -> str:
    if run.state != "queued":
        return ""
    return button(run, "up", "↑") + button(run, "down", "↓") + button(run, "unqueue", "Remove")


def head(run: Run) -> str:
    """Name, state, progress and what can be done."""
    title = f"<h2>{escape(run.name)}</h2>{state(run)}"
    progress = (
        f"<span>{run.step:,} / {run.num_steps:,} steps</span>{bar(run)}<span>{when(run)}</span>"
    )
    parts = [block("title", title, "run-title"), block("progress", progress, "run-progress")]
    if reason(run):
        parts.append(block("reason", reason(run)))
    return "".join([*parts, block("actions", actions(run), "run-actions")])


def actions(run: Run) -> str:
    """The buttons that make sense in this state."""
    found = []
    if run.state in ALIVE:
        if run.state != "stopping":
            if run.method != PREPARE:  # which saves all the time
                found.append(button(run, "save", "Save now"))
            if read_tree(run.folder).get("validation"):
                found.append(button(run, "sample", "Draw samples now"))
            found.append(button(run, "stop", "Stop after this step"))
        found.append(button(run, "force_stop", "Force stop", "Lose what is not saved?"))
    elif run.state == "queued":
        found.append(queue_buttons(run))
    elif run.state != "finished":
        found.append(button(run, "resume", "Resume"))
    if run.method != PREPARE:
        found.append(f'<a class="button" href="?train={quote(run.name)}">Clone</a>')
    if run.state not in ALIVE:
        found.append(button(run, "delete", "Delete", "Move to the trash?"))
    return "".join(found)


def overview(run: Run) -> str:
    """The newest figures, what happened, and how it was started."""
    launch = read_launch(run.folder)
    lines = [
        ("Method", run.method),
        ("Model", run.model),
        ("Where", place(run)),
        ("Started", moment(run.started) if run.started else "not yet"),
        ("Ended", moment(run.ended) if run.ended else ""),
    ]
    figures = [(name, f"{value:.5g}") for name, value in sorted(view.latest(run.folder).items())]
    events = [
        (event["event"].replace("_", " "), event_text(event))
        for event in view.newest_events(run.folder, NOTEWORTHY)[:20]
    ]
    parts = [
        block("facts", table("Run", lines)),
        block("figures", table("Newest figures", figures)),
    ]
    parts.append(block("events", table("Noteworthy", events)))
    if launch is not None:
        command = f"<h3>Command</h3><pre>{escape(launch.shell())}</pre>"
        parts.append(block("command", command, "wide"))
    return "".join(parts)


def event_text(event: dict[str, object]) -> str:
    shown = {name: value for name, value in event.items() if name not in ("time", "event")}
    return ", ".join(f"{name} {value}" for name, value in shown.items())


def table(title: str, lines: Sequence[tuple[str, str]]) -> str:
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{escape(text)}</td></tr>" for name, text in lines if text
    )
    return f"<h3>{title}</h3><table>{rows}</table>" if rows else ""


def samples(run: Run) -> str:
    """Rows are steps, columns prompts; the teacher first."""
    rows = view.samples(run.folder)
    validation = read_tree(run.folder).get("validation")
    if not rows:
        text = "The first videos come with the first validation."
        if validation is None:
            text = "This run draws no videos: it has no validation. Set it in a clone."
        return block("none", f"<p>{text}</p>")
    names = list(dict.fromkeys(name for each in rows for name in each.videos))
    prompts = value_at(read_tree(run.folder), ("validation", "prompts")) or []
    heads = "".join(f"<span>{escape(column_title(name, prompts))}</span>" for name in names)
    hint = "<p>Choose two videos to see them side by side, in step.</p>"
    parts = [block("hint", hint), block("head", f"<span></span>{heads}", "sample-row sample-head")]
    for each in rows:
        title = each.title
        videos = "".join(video(each.videos.get(name), title) for name in names)
        label = (
            f'<button type="button" data-do="play" title="Play or pause this row">{title}</button>'
        )
        parts.append(block(title, label + videos, "sample-row"))
    return "".join(parts)


def column_title(name: str, prompts: Sequence[str]) -> str:
    """`02-seed1` -> the prompt and its seed."""
    number, _, seed = name.partition("-")
    known = number.isdecimal() and int(number) < len(prompts)
    return f"{prompts[int(number)]} · {seed}" if known else name


def video(path: Path | None, row_title: str) -> str:
    """A sample, which a click puts into the player."""
    if path is None:
        return "<span></span>"
    sample = escape(f"{path.parent.name}/{path.stem}")
    label = escape(f"{row_title}, {path.stem}: show in the player")
    shown = f'<video src="{escape(video_link(path))}" muted loop playsinline preload="metadata">'
    return (
        f'<button type="button" class="sample" data-do="pick" data-sample="{sample}" '
        f'aria-pressed="false" aria-label="{label}">{shown}</video></button>'
    )


def video_link(path: Path) -> str:
    """The address of a file that may be written again."""
    return f"{file_link(path)}?v={path.stat().st_mtime_ns}"


def file_link(path: Path) -> str:
    return FILE_ROUTE + quote(str(path))


def checkpoints(run: Run) -> str:
    """What can be resumed, and tried in Compare; a checkpoint is exported when it is asked for."""
    parts = []
    if (run.folder / "export").is_dir() and not (run.folder / "export" / "vae").is_dir():
        text = "<p>The run exported its student.</p>" + button(run, "compare", "Try in Compare")
        parts.append(block("export", text + keep(run), "run-export"))
    for each in view.checkpoints(run.folder):
        best = ' <span class="run-state" data-state="finished">best</span>' if each.best else ""
        text = (
            f"<b>step {each.step:,}</b>{best}<span>{each.num_bytes / 1e6:,.1f} MB</span>"
            f"<time>{moment(each.saved)}</time>"
            + button(run, f"compare@{each.step}", "Try in Compare")
            + keep(run, each.step)
        )
        parts.append(block(f"{each.step}", text, "checkpoint"))
    none = block("none", "<p>No checkpoint yet. Save now makes one after this step.</p>")
    return "".join(parts) or none


def keep(run: Run, step: int | None = None) -> str:
    """A name and a button that make a model of it, which stays when the run is deleted."""
    ending, action = ("model", "keep") if step is None else (str(step), f"keep@{step}")
    name = escape(f"{run.name}-{ending}")
    field = f'<input type="text" aria-label="Name of the model" value="{name}">'
    return f'<span class="keep">{field}{button(run, action, "Keep as a model")}</span>'


def differences(rows: Sequence[tuple[str, object, object]], other: str) -> str:
    """A table of settings that differ."""
    if not rows:
        return f"<p>The same settings as {escape(other)}.</p>"
    body = "".join(
        f"<tr><td>{escape(name)}</td><td>{setting(ours)}</td><td>{setting(theirs)}</td></tr>"
        for name, ours, theirs in rows
    )
    return (
        f"<table><tr><th>Setting</th><th>This run</th><th>{escape(other)}</th></tr>{body}</table>"
    )


def setting(value: object) -> str:
    """None is also what a side without this setting has."""
    return "none" if value is None else escape(str(value))
