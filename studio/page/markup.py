"""The page's files beside Python: scripts and styles in static/, HTML in templates/ (Jinja)."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from studio.page import words

STATIC = Path(__file__).parent / "static"
TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
for shown in (words.bytes_words, words.duration, words.moment, words.plural, words.video_link):
    TEMPLATES.filters[shown.__name__] = shown


def render(name: str, **values: Any) -> str:
    """The HTML of templates/NAME.html with these values, which are escaped.

    A value that the template asks for and does not get raises jinja2's UndefinedError.
    """
    return TEMPLATES.get_template(f"{name}.html").render(values)
