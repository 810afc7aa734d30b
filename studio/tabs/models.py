"""Models: what is here, what is missing, and a button that fetches it."""

import shutil
from html import escape
from typing import Any

import gradio as gr

from pipelines.catalog.downloads import Download, published
from pipelines.catalog.registry import ModelEntry
from pipelines.files.disk import disk_bytes
from pipelines.memory import installed_attention
from studio.compare.variants import lora_name
from studio.models.downloads import Downloads
from studio.models.html import ModelRow, lora_row, model_row
from studio.page.live import draw_live
from studio.page.words import bytes_words
from studio.run_page.html import block
from studio.studio import Studio

TITLE = "Models"
NOTES = {
    "download": "It goes on when this page or the studio is closed.",
    "stop": "What has been downloaded is kept.",
}


def build(studio: Studio, page: gr.Blocks) -> None:
    """A list that looks at the disk again while it can be seen."""
    models = ModelList(studio)
    draw_live(models.show, models.act, "model-list")


class ModelList:
    """What the list asks for, and what its buttons do. Browsers may send anything."""

    def __init__(self, studio: Studio):
        self.studio, self.registry = studio, studio.registry
        self.downloads = Downloads(studio.registry)

    def show(self, _: str) -> str:
        """Every model, then every LoRA. Viewers see no folder of this machine."""
        found, entries = published(self.registry), self.registry.models()
        missing = {name for name, entry in entries.items() if entry.missing is not None}
        rows = [
            model_row(self.row(entry, found.get(name), missing)) for name, entry in entries.items()
        ]
        loras = [
            lora_row(lora_name(self.registry, path), path.is_dir(), disk_bytes(path))
            for path in self.registry.loras()
        ]
        if loras:
            rows.append(block("loras", "<h3>LoRAs</h3>"))
        place = "" if self.studio.viewer else block("place", self.place())
        return "".join([place, *rows, *loras])

    def row(self, entry: ModelEntry, download: Download | None, missing: set[str]) -> ModelRow:
        here = entry.missing is None and entry.own_folder is not None
        base = entry.preset.base
        return ModelRow(
            entry,
            num_bytes=disk_bytes(entry.own_folder) if here and entry.own_folder else 0,
            download=None if download is None else self.downloads.state(download),
            downloadable=download is not None,
            viewer=self.studio.viewer,
            needs=base if base in missing else None,
        )

    def place(self) -> str:
        """Where downloads go, what is free there, and how clips are made."""
        folder = self.registry.download_dir
        free = shutil.disk_usage(folder if folder.is_dir() else folder.parent).free
        attention = ", ".join(name.removeprefix("_") for name in installed_attention())
        return (
            f"<p>Downloads go to {escape(str(folder))}, {bytes_words(free)} free. Unless "
            f"Compare says otherwise, memory is {escape(self.studio.memory)}; installed for "
            f"attention: {attention}.</p>"
        )

    def act(self, name: str, action: str, _: str = "") -> dict[str, Any]:
        """What a button does."""
        self.studio.require_maker()
        actions = {"download": self.downloads.start, "stop": self.downloads.stop}
        if not isinstance(action, str) or action not in actions:
            raise ValueError(f"action: there is no action {str(action)[:40]!r}; reload the page")
        actions[action](name)
        return {"note": NOTES[action]}
