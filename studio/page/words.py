"""Words and numbers as the page says them."""

from collections.abc import Mapping, Sequence
from typing import Any

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


GB, MB = 1e9, 1e6


def bytes_words(num_bytes: float) -> str:
    return f"{num_bytes / GB:.1f} GB" if num_bytes >= GB / 10 else f"{num_bytes / MB:.1f} MB"


def value_at(tree: Mapping[str, Any], path: Sequence[str]) -> Any:
    """The value at a path of names, None where there is none."""
    node: Any = tree
    for name in path:
        node = node.get(name) if isinstance(node, Mapping) else None
    return node
