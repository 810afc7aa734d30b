"""Data as HTML. Everything that a file or a user says goes through `escape`."""

from collections import Counter
from collections.abc import Sequence
from html import escape
from urllib.parse import quote

from studio.data.preparing import DataSet
from studio.page.words import bytes_words, plural
from studio.run_page.html import bar, block, button, file_link, reason, state, when
from studio.runs.status import ALIVE
from trainers.sources.inspect import Look, Probe
from trainers.sources.listing import Item

MAX_ROWS = 200
MAX_PROBLEMS = 50


def look(seen: Look) -> str:
    """A table of the videos, problems first, or the first prompts."""
    settings = ", ".join(
        f"{name} {shown}"
        for name, shown in (
            ("size", " and ".join(seen.config["size"])),
            ("frames", seen.config["frames"]),
            ("fps", seen.config["fps"]),
        )
        if shown
    )
    if seen.kind != "videos":
        what = "prompt" if seen.kind == "prompts" else "file"
        shown = [item.caption or str(item.file) for item in seen.items[:MAX_ROWS]]
        rows = "".join(f"<li>{escape(each)}</li>" for each in shown)
        return f"<p>{plural(len(seen.items), what)}, {escape(settings)}</p><ul>{rows}</ul>"
    pairs = list(zip(seen.items, seen.probes, strict=False))
    bad = [pair for pair in pairs if pair[1].problem]
    good = [pair for pair in pairs if not pair[1].problem]
    rest = len(seen.items) - len(pairs)
    said = f"{len(good)} of {plural(len(pairs), 'video')} can be prepared: {settings}."
    said += f" {rest:,} more were not looked at." if rest else ""
    rows = "".join(video_row(item, found) for item, found in [*bad, *good][:MAX_ROWS])
    heads = "".join(f"<th>{name}</th>" for name in ("Video", "Now", "Becomes", "Caption"))
    table = f"<table><tr>{heads}</tr>{rows}</table>"
    return f'<p>{escape(said)}</p><div class="data-table">{table}</div>'


def video_row(item: Item, found: Probe) -> str:
    """One video: what it is, what it becomes or why not, and what it shows."""
    now = f"{found.width}x{found.height}, {found.fps:.4g} fps, {found.duration_sec:.1f} s"
    becomes = f'<span class="problem">{escape(found.problem)}</span>'
    if not found.problem and found.size is not None:
        becomes = f"{found.size[0]}x{found.size[1]}, {found.kept:.0%} of the picture"
    cells = (
        escape(item.file.name if item.file else ""),
        f"{now}, {escape(found.codec)}" if found.width else "",
        becomes,
        escape(item.caption),
    )
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def data_list(found: Sequence[DataSet]) -> str:
    """Two blocks each, so that videos play on while figures change."""
    if not found:
        return block("none", "<p>No data yet. Choose a source above, look at it, prepare it.</p>")
    blocks = []
    for data in found:
        blocks.append(block(data.name, head(data), "data-head"))
        if data.previews:
            blocks.append(block(f"{data.name}/previews", previews(data), "data-previews"))
    return "".join(blocks)


def head(data: DataSet) -> str:
    """Name, state, progress, buttons and facts."""
    run = data.run
    name = f"<b>{escape(data.name)}</b>"
    if run is None:
        return f"{name}<span></span>{facts(data)}"
    link = f'<a href="?run={quote(run.name)}">{name}</a>'
    progress = ""
    if run.state != "finished" and run.num_steps:
        progress = (
            f'<span class="data-progress">{run.step:,} / {run.num_steps:,}{bar(run)}'
            f"<span>{when(run)}</span></span>"
        )
    buttons = []
    if run.state in ALIVE:
        buttons.append(button(run, "stop", "Stop"))
    elif run.state == "queued":
        buttons.append(button(run, "unqueue", "Remove from queue"))
    elif run.state != "finished":
        buttons.append(button(run, "resume", "Resume"))
    if run.state not in ALIVE:
        buttons.append(button(run, "delete", "Delete", "Move to the trash?"))
    return (
        f'<span class="data-name">{link}{state(run)}</span>'
        f'<span class="data-buttons">{"".join(buttons)}</span>{progress}{reason(run)}{facts(data)}'
    )


def facts(data: DataSet) -> str:
    """What is there, what it takes, and how to train on it."""
    parts = [bytes_words(data.num_bytes)]
    if data.captions:
        parts = [plural(len(data.captions), "sample"), *map(size_words, data.sizes), *parts]
        hint = f"<span>In Train: data.folder <code>{escape(data.shown_folder)}</code></span>"
    else:
        hint = ""
    told = f"<span>{escape(' · '.join(parts))}</span>{hint}"
    return f'<span class="data-facts">{told}</span>{problem_list(data)}'


def size_words(size: tuple[int, int, int]) -> str:
    """Width, height and frames of a video, for people."""
    width, height, num_frames = size
    return f"{width}x{height}, {num_frames} frames"


def problem_list(data: DataSet) -> str:
    """How often each reason, then the files."""
    if not data.problems:
        return ""
    counts = Counter(problem for _, problem in data.problems).most_common()
    told = "; ".join(f"{count} x {problem}" for problem, count in counts[:5])
    rows = "".join(
        f"<li>{escape(name)}: {escape(problem)}</li>"
        for name, problem in data.problems[:MAX_PROBLEMS]
    )
    title = f"{plural(len(data.problems), 'problem')}: {escape(told)}"
    return f'<details class="data-problems"><summary>{title}</summary><ul>{rows}</ul></details>'


def previews(data: DataSet) -> str:
    """Some samples as they were stored, decoded, with their captions."""
    return "".join(
        f'<figure><video src="{file_link(path)}?v={path.stat().st_mtime_ns}" controls muted loop '
        f'playsinline preload="metadata"></video><figcaption>#{index} {escape(caption)}'
        "</figcaption></figure>"
        for index, path in data.previews.items()
        for caption in data.captions[index : index + 1]
    )
