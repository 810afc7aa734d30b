"""A look at a source of data, and the list of data sets, as HTML."""

from collections import Counter
from collections.abc import Sequence

from studio.data.preparing import DataSet
from studio.page.markup import render
from studio.page.words import bytes_words, plural
from studio.runs.status import ALIVE
from trainers.sources.inspect import Look

MAX_ROWS = 200
MAX_PROBLEMS = 50
NUM_REASONS = 5  # the most frequent problems, which are counted


def look(seen: Look) -> str:
    """A table of the videos, problems first, or the first prompts."""
    chosen = {name: seen.config[name] for name in ("size", "frames", "fps")}
    chosen["size"] = " and ".join(chosen["size"])
    settings = ", ".join(f"{name} {value}" for name, value in chosen.items() if value)
    if seen.kind != "videos":
        what = "prompt" if seen.kind == "prompts" else "file"
        said = f"{plural(len(seen.items), what)}, {settings}"
        texts = [item.caption or str(item.file) for item in seen.items[:MAX_ROWS]]
        return render("data_look", seen=seen, said=said, texts=texts)
    pairs = list(zip(seen.items, seen.probes, strict=False))
    num_good = sum(not found.problem for _, found in pairs)
    said = f"{num_good} of {plural(len(pairs), 'video')} can be prepared: {settings}."
    if rest := len(seen.items) - len(pairs):
        said += f" {rest:,} more were not looked at."
    videos = sorted(pairs, key=lambda pair: not pair[1].problem)[:MAX_ROWS]
    return render("data_look", seen=seen, said=said, videos=videos)


def data_list(found: Sequence[DataSet]) -> str:
    """Every data set: name, state, progress, buttons, facts, problems, and some samples."""
    rows = [(data, facts(data), reasons(data)) for data in found]
    return render("data_list", rows=rows, alive=ALIVE, max_problems=MAX_PROBLEMS)


def facts(data: DataSet) -> str:
    """What is there, and what it takes."""
    parts = [bytes_words(data.num_bytes)]
    if data.captions:
        parts = [plural(len(data.captions), "sample"), *map(size_words, data.sizes), *parts]
    return " · ".join(parts)


def size_words(size: tuple[int, int, int]) -> str:
    """Width, height and frames of a video, for people."""
    width, height, num_frames = size
    return f"{width}x{height}, {num_frames} frames"


def reasons(data: DataSet) -> str:
    """How often each problem."""
    counts = Counter(problem for _, problem in data.problems).most_common(NUM_REASONS)
    return "; ".join(f"{count} x {problem}" for problem, count in counts)
