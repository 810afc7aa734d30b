"""Images that videos start from, kept by their content: a link or a clip never loses its image.

What the browser uploads lies in Gradio's cache for a day. A copy goes to DATA/images/NAME.png,
where NAME is the fingerprint that recipes hold; the same picture twice is one file.
"""

import json
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from pipelines.catalog.registry import ROOT
from pipelines.files.disk import fingerprint
from pipelines.files.images import read_image
from pipelines.recipe import FirstFrame

EXAMPLES = ROOT / "assets" / "first-frames"


@dataclass(frozen=True)
class Example:
    """An image that is here from the start, and what may happen in it."""

    name: str
    image: Path
    prompt: str


class Images:
    """The images of one data folder, by name."""

    def __init__(self, data: Path):
        self.folder = data / "images"
        self.folder.mkdir(parents=True, exist_ok=True)

    def add(self, path: Path) -> str:
        """Keeps a copy of the picture alone, as PNG; returns its name. ValueError for no image."""
        image = read_image(path)
        with tempfile.NamedTemporaryFile(dir=self.folder, suffix=".partial", delete=False) as file:
            image.save(file, format="PNG")
        name = fingerprint(Path(file.name))
        os.replace(file.name, self.folder / f"{name}.png")
        return name

    def path(self, name: str) -> Path:
        """Where an image lies. ValueError where there is none of that name."""
        path = self.folder / f"{name}.png"
        if not (isinstance(name, str) and re.fullmatch("[0-9a-f]{16}", name) and path.is_file()):
            raise ValueError(f"image {name!r} is not in this studio; upload it")
        return path

    def examples(self) -> list[Example]:
        """The images in assets/first-frames with their prompts, kept like uploads."""
        lines = (EXAMPLES / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        names = [self.add(EXAMPLES / row["image"]) for row in rows]
        return [
            Example(name, self.path(name), row["prompt"])
            for name, row in zip(names, rows, strict=True)
        ]

    def name(self, image: FirstFrame | None) -> str:
        """The name of a recipe's image; empty where it has none or the image is not here."""
        name = "" if image is None or image.fingerprint is None else image.fingerprint
        return name if (self.folder / f"{name}.png").is_file() else ""
