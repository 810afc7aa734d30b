"""Words and numbers as the page says them."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pydantic import ValidationError

from pipelines.strict import explain

FILE_ROUTE = "gradio_api/file="  # relative, so that it works behind a proxy; paths are under `data`


def sentence(error: ValueError) -> str:
    """One sentence naming the field, also for pydantic's many lines."""
    return explain(error) if isinstance(error, ValidationError) else str(error)


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def duration(sec: float) -> str:
    """Seconds in the unit that reads best."""
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if sec >= 2 * size:
            return f"{sec / size:.3g} {unit}"
    return f"{sec:.3g} s"


def moment(seconds: float) -> str:
    """A Unix time as day and minute."""
    return time.strftime("%d %b %H:%M", time.localtime(seconds))


GB, MB = 1e9, 1e6


def bytes_words(num_bytes: float) -> str:
    return f"{num_bytes / GB:.1f} GB" if num_bytes >= GB / 10 else f"{num_bytes / MB:.1f} MB"


def file_link(path: Path) -> str:
    """The address of a file that the page may show."""
    return FILE_ROUTE + quote(str(path))


def video_link(path: Path) -> str:
    """The address of a file that may be written again, another one then."""
    return f"{file_link(path)}?v={path.stat().st_mtime_ns}"


def value_at(tree: Mapping[str, Any], path: Sequence[str]) -> Any:
    """The value at a path of names, None where there is none."""
    node: Any = tree
    for name in path:
        node = node.get(name) if isinstance(node, Mapping) else None
    return node
