"""Folders and lists of what a user has to prepare, videos or prompts, as items. Opens no video.

a folder             FastVideo's .parquet files, if it holds any; else its videos, each with
                     its caption in a .txt beside it, or as the folder's own
                     videos2caption.json, metadata.jsonl or metadata.csv says
.csv .jsonl .json    a row each: the file under `path`, `video`, `file`, `file_name` or
                     `video_path`, the caption under `cap`, `caption`, `text` or `prompt`
.txt                 prompts alone, one a line; lines that start with # are skipped
"""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.files.disk import read_lines
from trainers.settings.prepare import Kind

VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".mpg", ".mpeg")
LISTS = ("videos2caption.json", "metadata.jsonl", "metadata.csv")  # FastVideo's, the hub's
FILE_KEYS = ("path", "video", "file", "file_name", "video_path")
CAPTION_KEYS = ("cap", "caption", "text", "prompt")
MAX_CSV_FIELD = 2**20  # characters; captions are longer than the reader allows by itself


@dataclass(frozen=True)
class Item:
    """A video with its caption, a prompt alone, or a .parquet file of encoded samples.

    An empty caption is a missing one.
    """

    file: Path | None
    caption: str


def kind_of(items: Sequence[Item]) -> Kind:
    """What a source holds; it never mixes."""
    file = items[0].file
    return "prompts" if file is None else "parquet" if file.suffix == ".parquet" else "videos"


def read_items(source: Path) -> list[Item]:
    """All items of a source, in an order that does not change. ValueError where it is none."""
    if source.is_dir():
        items = _read_folder(source)
    elif source.suffix == ".txt" and source.is_file():
        items = _read_prompts(source)
    elif source.suffix in (".csv", ".jsonl", ".json") and source.is_file():
        items = _read_list(source)
    elif source.is_file():
        raise ValueError(f"source: {source} is no folder and no .csv, .jsonl, .json or .txt file")
    else:
        raise ValueError(f"source: {source} does not exist; check the path")
    if not items:
        raise ValueError(f"source: {source} holds no videos or prompts; check the path")
    return items


def _read_folder(folder: Path) -> list[Item]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    encoded = [Item(path, "") for path in files if path.suffix == ".parquet"]
    own_list = next((folder / name for name in LISTS if (folder / name).is_file()), None)
    if encoded or own_list is None:
        videos = [path for path in files if path.suffix.lower() in VIDEO_SUFFIXES]
        return encoded or [Item(video, _caption_beside(video)) for video in videos]
    return _read_list(own_list)


def _caption_beside(video: Path) -> str:
    text = video.with_suffix(".txt")
    return _words(text.read_text(encoding="utf-8", errors="replace")) if text.is_file() else ""


def _read_prompts(file: Path) -> list[Item]:
    return [Item(None, _words(line)) for line in read_lines(file)]


def _read_list(file: Path) -> list[Item]:
    rows = _read_rows(file)
    items = []
    for number, row in enumerate(rows, start=1):
        name = _first(row, FILE_KEYS) if isinstance(row, Mapping) else None
        if not isinstance(name, str) or not name:
            raise ValueError(
                f"source: row {number} of {file} names no file; give it under {FILE_KEYS[0]!r}"
            )
        caption = _first(row, CAPTION_KEYS)
        if isinstance(caption, list):  # several captions of one video
            caption = caption[0] if caption else ""
        items.append(Item(_place(file.parent, name), _words(str(caption or ""))))
    return items


def _read_rows(file: Path) -> Sequence[Any]:
    text = file.read_text(encoding="utf-8-sig")
    if file.suffix == ".csv":
        csv.field_size_limit(MAX_CSV_FIELD)
        return list(csv.DictReader(text.splitlines(keepends=True)))
    try:
        if file.suffix == ".jsonl":
            return [json.loads(line) for line in text.splitlines() if line.strip()]
        rows = json.loads(text)
    except ValueError as error:
        raise ValueError(f"source: {file} is not valid JSON ({error}); correct it") from error
    if not isinstance(rows, list):
        raise ValueError(f"source: {file} holds no list of videos; see `videos2caption.json`")
    return rows


def _place(folder: Path, name: str) -> Path:
    """Names are relative to the list, or to `videos/` beside it as FastVideo has it."""
    beside = folder / "videos" / name
    return beside if beside.is_file() else folder / name


def _first(row: Mapping[str, Any], keys: Sequence[str]) -> Any:
    return next((row[key] for key in keys if row.get(key)), None)


def _words(text: str) -> str:
    return " ".join(text.split())
