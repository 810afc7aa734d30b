"""Lists of prompts, with or without the image that each video starts from.

NAME.txt     one prompt a line; lines that start with # are skipped
NAME.jsonl   {"prompt": "...", "image": "..."} a line; paths start at the list's own folder
"""

import json
from dataclasses import dataclass
from pathlib import Path

from pipelines.files.disk import read_lines

IMAGES_SUFFIX = ".jsonl"


@dataclass(frozen=True)
class ListedPrompt:
    """One line of a list."""

    text: str
    image: Path | None = None


def read_prompts(file: Path) -> list[ListedPrompt]:
    """All lines of a list; ValueError naming `data.file` where it cannot be read or holds none."""
    if not file.is_file():
        raise ValueError(f"data.file: there is no file {file}")
    lines = read_lines(file)
    if not lines:
        raise ValueError(f"data.file: {file} holds no prompts; write one a line")
    if file.suffix != IMAGES_SUFFIX:
        return [ListedPrompt(line) for line in lines]
    return [_with_image(file, number, line) for number, line in enumerate(lines, 1)]


def _with_image(file: Path, number: int, line: str) -> ListedPrompt:
    try:
        row = json.loads(line)
        prompt, image = str(row["prompt"]), file.parent / row["image"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f'data.file: entry {number} of {file} must be {{"prompt": "...", "image": "..."}}'
        ) from error
    if not image.is_file():
        raise ValueError(f"data.file: entry {number} of {file} names {image}, which is not there")
    return ListedPrompt(prompt, image)
