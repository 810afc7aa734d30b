"""Models and LoRAs as HTML. Everything that comes from files goes through `escape`."""

from dataclasses import dataclass
from html import escape

from pipelines.catalog.downloads import DownloadState
from pipelines.catalog.entries import ModelEntry
from pipelines.recipe import SOLVERS, SamplerSpec
from studio.page.words import GB, bytes_words, duration, plural
from studio.run_page.html import block


@dataclass(frozen=True)
class ModelRow:
    """What the page says about one model. Viewers get no `entry.missing` and no buttons."""

    entry: ModelEntry
    num_bytes: int  # on this disk
    download: DownloadState | None
    downloadable: bool
    viewer: bool
    needs: str | None = None  # its base, where that is missing, too

    @property
    def state(self) -> str:
        if self.download is not None and self.download.state == "running":
            return "downloading"
        if self.entry.missing is None:
            return "available"
        return "missing" if self.entry.folder is None and self.downloadable else "incomplete"


def model_row(row: ModelRow) -> str:
    """One model; the second line says what is wrong, or how the download stands."""
    preset = row.entry.preset
    base = row.entry.base or preset.base
    kind = f"{preset.kind}, on {base}" if base else preset.kind
    parts = [
        f'<span class="model-title"><b>{escape(preset.title)}</b>'
        f"<small>{escape(preset.name)}</small></span>",
        f"<span>{escape(kind)}</span>",
        f"<span>{escape(preset.license)}</span>",
        f'<span class="model-size">{size(row)}</span>',
        f"<span>{escape(sampler_words(preset.sampler))}</span>",
        f'<span class="model-state" data-state="{row.state}">{row.state}</span>',
        f'<span class="model-buttons">{"" if row.viewer else buttons(row)}</span>',
        progress(row),
        "" if row.viewer else reason(row),
    ]
    return block(preset.name, "".join(parts), "model-row")


def size(row: ModelRow) -> str:
    """On this disk, or what a download would bring."""
    if row.state == "available":
        return bytes_words(row.num_bytes)
    return bytes_words(row.entry.preset.size_gb * GB) if row.entry.preset.size_gb else ""


def sampler_words(spec: SamplerSpec) -> str:
    """How the model is sampled by itself, and what that costs."""
    steps = plural(spec.num_inference_steps, "step")
    forwards = spec.num_inference_steps * spec.forwards_per_step
    return (
        f"{steps} of {SOLVERS[spec.name]}, shift {spec.flow_shift:g}, {spec.guidance_text}, "
        f"{plural(forwards, 'forward')}"
    )


def buttons(row: ModelRow) -> str:
    """Downloading asks again, with licence and size."""
    preset = row.entry.preset
    if row.state == "downloading":
        return button(preset.name, "stop", "Stop")
    if not row.downloadable or row.state == "available":
        return ""
    begun = row.download is not None and row.download.done_bytes > 0
    size_words = f"{bytes_words(preset.size_gb * GB)}, " if preset.size_gb else ""
    confirm = f"{size_words}licence {preset.license}: go?"
    return button(preset.name, "download", "Go on" if begun else "Download", confirm)


def button(name: str, action: str, text: str, confirm: str = "") -> str:
    asked = f' data-confirm="{escape(confirm)}"' if confirm else ""
    return (
        f'<button type="button" data-do="{action}" data-run="{escape(name)}"{asked}>{text}</button>'
    )


def progress(row: ModelRow) -> str:
    """How far a running download is."""
    state = row.download
    if state is None or state.state != "running":
        return ""
    if not state.total_bytes:
        return '<span class="model-note">asks the hub what there is</span>'
    words = f"{bytes_words(state.done_bytes)} of {bytes_words(state.total_bytes)}"
    if state.eta_sec is not None:
        words += f", {duration(state.eta_sec)} left"
    bar = f'<progress max="{state.total_bytes}" value="{state.done_bytes}" aria-label="bytes">'
    return f'<span class="model-note">{words}{bar}</progress></span>'


def reason(row: ModelRow) -> str:
    """Why it cannot be used, and why its download ended."""
    if row.state in ("available", "downloading"):
        return ""
    sentences = [f"{row.entry.missing}."]
    if row.state == "missing":  # shorter than what a shell is told
        sentences = [f"{row.entry.preset.source} is not here: press Download, or copy it there."]
    if row.needs is not None:
        sentences.append(f"It also needs {row.needs}, which is missing, too.")
    if row.download is not None and row.download.state == "failed":
        sentences.insert(0, f"The download failed: {row.download.error}.")
    if row.download is not None and row.download.state == "stopped":
        done = bytes_words(row.download.done_bytes)
        sentences.insert(0, f"The download was stopped; {done} of it is kept.")
    return f'<span class="model-reason">{escape(" ".join(sentences))}</span>'


def lora_row(name: str, is_folder: bool, num_bytes: int) -> str:
    """One LoRA under the models folders."""
    parts = [
        f'<span class="model-title"><b>{escape(name)}</b></span>',
        f"<span>LoRA{', PEFT folder' if is_folder else ''}</span><span></span>",
        f'<span class="model-size">{bytes_words(num_bytes)}</span>',
    ]
    return block(f"lora {name}", "".join(parts), "model-row lora-row")
