"""Models: what is here, what is missing, and a button that fetches it."""

import shutil
from dataclasses import dataclass
from typing import Any

import gradio as gr

from pipelines.catalog.downloads import Download, DownloadState, published
from pipelines.catalog.entries import ModelEntry
from pipelines.files.disk import disk_bytes
from pipelines.memory import installed_attention
from pipelines.recipe import SOLVERS
from studio.compare.variants import lora_name
from studio.models.downloads import Downloads
from studio.page.handlers import require_action
from studio.page.live import draw_live
from studio.page.markup import STATIC, render
from studio.page.words import bytes_words
from studio.studio import Studio

TITLE = "Models"
ORDER = 5
LINK = None
STYLE = STATIC / "models.css"
FOR_VIEWERS = True
NOTES = {
    "download": "It goes on when this page or the studio is closed.",
    "stop": "What has been downloaded is kept.",
}


def build(studio: Studio, page: gr.Blocks) -> None:
    """A list that looks at the disk again while it can be seen."""
    models = ModelList(studio)
    draw_live(models.show, models.act, "model-list")


@dataclass(frozen=True)
class ModelRow:
    """What the list says of one model."""

    entry: ModelEntry
    num_bytes: int  # on this disk
    download: DownloadState | None
    downloadable: bool
    needs: str | None = None  # its base, where that is missing, too

    @property
    def stage(self) -> str | None:
        """How its download stands; None where there was none."""
        return self.download.state if self.download is not None else None

    @property
    def state(self) -> str:
        """What the list says first."""
        if self.stage == "running":
            return "downloading"
        if self.entry.missing is None:
            return "available"
        return "missing" if self.entry.folder is None and self.downloadable else "incomplete"


class ModelList:
    """What the list asks for, and what its buttons do. Browsers may send anything."""

    def __init__(self, studio: Studio):
        self.studio, self.registry = studio, studio.registry
        self.downloads = Downloads(studio.registry)

    def show(self, _: str) -> str:
        """Every model, then every LoRA. Viewers see no folder of this machine."""
        found, entries = published(self.registry), self.registry.models()
        missing = {name for name, entry in entries.items() if entry.missing is not None}
        return render(
            "models",
            viewer=self.studio.viewer,
            solvers=SOLVERS,
            place="" if self.studio.viewer else self.place(),
            rows=[self.row(entry, found.get(name), missing) for name, entry in entries.items()],
            loras=[
                (lora_name(self.registry, path), path.is_dir(), disk_bytes(path))
                for path in self.registry.loras()
            ],
        )

    def row(self, entry: ModelEntry, download: Download | None, missing: set[str]) -> ModelRow:
        here = entry.missing is None and entry.own_folder is not None
        base = entry.preset.base
        return ModelRow(
            entry,
            num_bytes=disk_bytes(entry.own_folder) if here and entry.own_folder else 0,
            download=None if download is None else self.downloads.state(download),
            downloadable=download is not None,
            needs=base if base in missing else None,
        )

    def place(self) -> str:
        """Where downloads go, what is free there, and how clips are made."""
        folder = self.registry.download_dir
        free = shutil.disk_usage(folder if folder.is_dir() else folder.parent).free
        attention = ", ".join(name.removeprefix("_") for name in installed_attention())
        return (
            f"Downloads go to {folder}, {bytes_words(free)} free. Unless Compare says otherwise, "
            f"memory is {self.studio.memory}; installed for attention: {attention}."
        )

    def act(self, name: str, action: str, _: str = "") -> dict[str, Any]:
        """What a button does."""
        self.studio.require_maker()
        actions = {"download": self.downloads.start, "stop": self.downloads.stop}
        require_action(action, actions)
        actions[action](name)
        return {"note": NOTES[action]}
