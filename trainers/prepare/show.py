"""python -m trainers show-data FOLDER --index N --out x.mp4: decodes what prepared data hold."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipelines.catalog.registry import Registry
from pipelines.models.codecs import VideoCodec
from pipelines.models.loading import load_video_codec, pick_device
from pipelines.video import write_video
from trainers.data.prepared import SETTINGS, PreparedFolder
from trainers.networks.models import model_folder

PREVIEWS = "previews"
NUM_PREVIEWS = 6


def main(arguments: Sequence[str], registry: Registry) -> int:
    """Writes one sample as a video. Returns 0, or 2 for bad input."""
    parser = argparse.ArgumentParser(prog="python -m trainers show-data")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--index", type=int, default=0, metavar="N")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.mp4")
    parser.add_argument("--model", help="whose VAE decodes; default: the one that encoded")
    options = parser.parse_args(arguments)
    try:
        data = PreparedFolder(options.folder)
        name = options.model or _settings(options.folder).get("model")
        if name is None:
            raise ValueError(f"model: {options.folder} does not say what encoded it; give --model")
        entry = registry.entry(name)
        codec = load_video_codec(model_folder(entry), pick_device(), entry.preset.geometry)
        fps = _settings(options.folder).get("fps") or entry.preset.fps
        write_preview(data, options.index, codec, fps, options.out)
        print(f"{data.captions[options.index]}\n{data.origin(options.index)}")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def write_previews(folder: Path, codec: VideoCodec, fps: int) -> None:
    """Some samples of finished data, spread evenly, as OUT/previews/INDEX.mp4."""
    data = PreparedFolder(folder)
    num_samples = len(data.captions)
    num_shown = min(NUM_PREVIEWS, num_samples)
    for place in range(num_shown):
        index = place * num_samples // num_shown
        write_preview(data, index, codec, fps, folder / PREVIEWS / f"{index:06d}.mp4")


def write_preview(
    data: PreparedFolder, index: int, codec: VideoCodec, fps: int, path: Path
) -> None:
    """Decodes the latents of one sample. ValueError where there are none."""
    if not 0 <= index < len(data.captions):
        raise ValueError(f"index: it is {index} but there are {len(data.captions)} samples, from 0")
    tensors = data.read(index)
    if "latents" not in tensors:
        raise ValueError("index: prompts alone were prepared, so there is nothing to decode")
    video = codec.decode(tensors["latents"][None].to(codec.device))[0].permute(0, 2, 3, 1)
    write_video(path, video.cpu().numpy(), fps)


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / SETTINGS
    settings: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return settings
