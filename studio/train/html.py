"""What Train says about a form, as HTML. Everything that a user wrote goes through `escape`."""

import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from studio.page.words import duration
from studio.train.estimate import Plan
from studio.train.schema_form import element_id
from studio.train.training import Training


def problem(sentence: str, path: Sequence[str]) -> str:
    """The sentence, here and under its field; the folds around the field are marked, too."""
    named = re.match(r"[A-Za-z][\w.]*", sentence)  # of checks that know no path
    words = tuple(path) or tuple(named[0].split(".") if named else ())
    ids = [f"#{element_id(words[:depth])}" for depth in range(1, len(words) + 1)]
    folds = ", ".join(f"{each} > summary" for each in ids)
    inputs = f"{ids[-1]} :is(input, select, textarea)" if ids else ""
    rules = f"{folds} {{ color: var(--problem) }} {inputs} {{ border-color: var(--problem) }}"
    under = f"{ids[-1]}::after {{ content: {css_text(sentence)} }}" if ids else ""
    style = f"<style>{rules} {under}</style>" if ids else ""
    return f'<p class="problem" role="alert">{escape(sentence)}</p>{style}'


def css_text(text: str) -> str:
    """A CSS string; all but letters, digits and spaces is escaped, each with a space."""
    return '"' + re.sub(r"[^A-Za-z0-9 ]", lambda found: f"\\{ord(found[0]):06x} ", text) + '"'


def verdict(advice: Sequence[str]) -> str:
    """Of valid settings."""
    items = "".join(f"<li>{escape(each)}</li>" for each in advice)
    return f'<p class="valid">These settings are valid.</p>{f"<ul>{items}</ul>" if items else ""}'


def preview(training: Training, data: Mapping[str, Any]) -> str:
    """The first prompts of the data."""
    try:
        count, first = training.preview(data)
    except ValueError as error:
        return f'<p class="problem">{escape(str(error))}</p>'
    if not count:
        return ""
    items = "".join(f"<li>{escape(prompt)}</li>" for prompt in first)
    return f"<p>{count:,} prompts, such as</p><ul>{items}</ul>"


def plan(made: Plan, num_steps: int) -> str:
    """The table of the dry run, and the whole run's time."""
    rows = ""
    for where, sec in made.step_sec:
        total = f"{duration(sec * num_steps)} for {num_steps:,} steps"
        rows += f"<tr><td>{escape(where)}</td><td>{sec:.3g} s a step, {total}</td></tr>"
    groups = [("Time", rows)] if rows else []
    for heading, lines in made.groups:
        cells = (f"<tr><td>{escape(n)}</td><td>{escape(v)}</td></tr>" for n, v in lines)
        groups.append((heading, "".join(cells)))
    tables = "".join(
        f'<tr><th colspan="2">{escape(heading.capitalize())}</th></tr>{body}'
        for heading, body in groups
    )
    return f"<table>{tables}</table>"


def link(run: str, what: str) -> str:
    """A line that leads to the run."""
    name = escape(run)
    return f'<p role="status"><a href="?run={name}">{name}</a> {what}.</p>'
