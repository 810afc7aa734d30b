"""What Compare says beside its fields, as HTML."""

from collections.abc import Sequence
from typing import Any

from studio.compare.cost import Forecast
from studio.page.markup import render
from studio.page.words import plural

MARKED = ("input", "[data-testid=block-info]")  # inside a field that differs


def field_id(label: str, name: str) -> str:
    """The id of a field in the page."""
    return f"variant-{label}-{name}"


def problems(sentences: Sequence[str]) -> str:
    """Why Generate would refuse."""
    return render("problems", problems=sentences)


def forecast(outlook: Forecast, differing: Sequence[str], labels: Sequence[str]) -> str:
    """What Generate would do, and the rules that mark differing fields and impossible variants."""
    ids = (field_id(label, name) for label in labels for name in differing)
    return render(
        "forecast",
        estimate=estimate(outlook, len(labels)),
        problems=[f"Variant {label}: {text}" for label, text in outlook.problems.items()],
        differing=[f"#{each} {part}" for each in ids for part in MARKED],
        labels=list(outlook.problems),
    )


def estimate(outlook: Forecast, num_variants: int) -> str:
    """How long the clips that are not there yet will take."""
    parts = []
    if outlook.seconds:
        known = [f"{max(sec, 0.1):.1f} s" for sec in outlook.seconds if sec is not None]
        num_unknown = outlook.seconds.count(None)
        parts += ["Estimated " + " + ".join(known)] if known else []
        parts += [f"{plural(num_unknown, 'clip')} of unknown duration"] if num_unknown else []
    if outlook.num_cached:
        parts.append(f"{outlook.num_cached} of {num_variants} already made")
    return " · ".join(parts)


def history(comparisons: Sequence[dict[str, Any]]) -> str:
    """Links that reopen recent comparisons."""
    return render("history", comparisons=comparisons)
