"""Small pieces of HTML. Everything that a user wrote goes through `escape`."""

from collections.abc import Sequence
from html import escape
from typing import Any

from studio.compare.cost import Forecast
from studio.page.words import plural


def field_id(label: str, name: str) -> str:
    """The id of a field in the page."""
    return f"variant-{label}-{name}"


def problems(sentences: Sequence[str]) -> str:
    """Why Generate would refuse."""
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
    return f'<ul class="problems" role="alert">{items}</ul>' if items else ""


def forecast(outlook: Forecast, differing: Sequence[str], labels: Sequence[str]) -> str:
    """What Generate would do, and the rules that mark differing fields and impossible variants."""
    found = problems([f"Variant {label}: {text}" for label, text in outlook.problems.items()])
    return f"<p>{estimate(outlook, len(labels))}</p>{found}{marks(outlook, differing, labels)}"


def estimate(outlook: Forecast, num_variants: int) -> str:
    parts = []
    if outlook.seconds:
        known = [f"{max(sec, 0.1):.1f} s" for sec in outlook.seconds if sec is not None]
        num_unknown = outlook.seconds.count(None)
        parts += ["Estimated " + " + ".join(known)] if known else []
        parts += [f"{plural(num_unknown, 'clip')} of unknown duration"] if num_unknown else []
    if outlook.num_cached:
        parts.append(f"{outlook.num_cached} of {num_variants} already made")
    return " · ".join(parts)


def marks(outlook: Forecast, differing: Sequence[str], labels: Sequence[str]) -> str:
    """A style sheet of our own ids: it marks fields without drawing them again."""
    ids = [
        f"#{field_id(label, name)} {part}"
        for label in labels
        for name in differing
        for part in ("input", "[data-testid=block-info]")
    ]
    rules = [f"{', '.join(ids)} {{ color: var(--differs); font-weight: 600 }}"] if ids else []
    rules += [f"#variant-{label} {{ border-color: var(--problem) }}" for label in outlook.problems]
    return f"<style>{' '.join(rules)}</style>"


def history(comparisons: Sequence[dict[str, Any]]) -> str:
    """Links that reopen recent comparisons."""
    if not comparisons:
        return ""
    rows = [
        f'<li><a href="?v={item["id"]}"><b>{escape(item["prompt"])}</b>'
        f"<span>{escape(item['variants'])}</span><time>{escape(item['when'])}</time></a></li>"
        for item in comparisons
    ]
    return f"<h3>Recent comparisons</h3><ul>{''.join(rows)}</ul>"
