"""What Train says about a form, as HTML."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from studio.page.markup import render
from studio.train.schema_form import element_id
from studio.train.training import Training


def problem(sentence: str, path: Sequence[str]) -> str:
    """What is wrong, here and under its field. Without a path, the sentence may name the field."""
    named = re.match(r"[A-Za-z][\w.]*", sentence)  # of checks that know no path
    words = tuple(path) or tuple(named[0].split(".") if named else ())
    ids = [f"#{element_id(words[:depth])}" for depth in range(1, len(words) + 1)]
    return render("train_problem", sentence=sentence, ids=ids, css_text=css_text(sentence))


def css_text(text: str) -> str:
    """The inside of a CSS string: all but letters, digits and spaces is escaped."""
    return re.sub(r"[^A-Za-z0-9 ]", lambda found: f"\\{ord(found[0]):06x} ", text)


def preview(training: Training, data: Mapping[str, Any]) -> str:
    """The first prompts of the data, or why there are none."""
    try:
        count, first = training.preview(data)
    except ValueError as error:
        return render("train_prompts", problem=error)
    return render("train_prompts", problem=None, count=count, first=first)
