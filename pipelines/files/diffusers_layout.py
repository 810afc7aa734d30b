"""diffusers' layout: a folder for each network, and what keeps one from loading."""

from pathlib import Path

from pipelines.files.disk import read_json

MODEL_PARTS = ("transformer", "vae", "text_encoder", "tokenizer")
IMAGE_PARTS = ("image_encoder", "image_processor")
IMAGE_PIPELINE = "WanImageToVideoPipeline"
PIPELINES = ("WanPipeline", IMAGE_PIPELINE, "WanDMDPipeline")  # the last is FastWan's
WITHOUT_WEIGHTS = ("tokenizer", "image_processor")
WEIGHT_NAMES = ("diffusion_pytorch_model", "model")  # diffusers', transformers'


def is_diffusers_folder(folder: Path) -> bool:
    """Whether the folder has the diffusers layout of a pipeline with a transformer."""
    return (folder / "model_index.json").is_file() and (folder / "transformer").is_dir()


def pipeline_class(folder: Path) -> str | None:
    """The diffusers pipeline that a model folder is for, where it says so."""
    index = folder / "model_index.json"
    name: str | None = read_json(index).get("_class_name") if index.is_file() else None
    return name


def diffusers_problem(folder: Path) -> str | None:
    """One sentence about the first thing that keeps a diffusers folder from loading, or None."""
    try:
        return _first_problem(folder)
    except ValueError as error:
        return str(error)


def _first_problem(folder: Path) -> str | None:
    if not is_diffusers_folder(folder):
        return f"{folder} is not a diffusers folder: it needs model_index.json and transformer/"
    pipeline = pipeline_class(folder)
    if pipeline not in PIPELINES:
        return f"{folder} holds a {pipeline}, but only {' and '.join(PIPELINES)} can be used"
    for part in (*MODEL_PARTS, *_image_parts(folder)):
        if not (folder / part).is_dir():
            return f"{folder} has no {part}/ folder; copy it from the model's repository"
        missing = [file for file in weight_files(folder / part) if not file.is_file()]
        if part not in WITHOUT_WEIGHTS and missing:
            if any((folder / part).glob("*.bin")):
                return f"{folder / part} is a pickle, which is not opened; save it as safetensors"
            return f"{part}/{missing[0].name} is missing in {folder}; copy or download it again"
    return None


def _image_parts(folder: Path) -> tuple[str, ...]:
    """What a network that reads CLIP's tokens needs beside the other parts."""
    config = folder / "transformer" / "config.json"
    reads_embeds = config.is_file() and read_json(config).get("image_dim") is not None
    return IMAGE_PARTS if reads_embeds else ()


def weight_files(part: Path) -> list[Path]:
    """The safetensors files, all shards, that a part of a model needs, there or not."""
    for name in WEIGHT_NAMES:
        index = part / f"{name}.safetensors.index.json"
        if index.is_file():
            return [part / shard for shard in sorted(set(read_json(index)["weight_map"].values()))]
        if (part / f"{name}.safetensors").is_file():
            return [part / f"{name}.safetensors"]
    by_transformers = part.name in ("text_encoder", "image_encoder")
    expected = WEIGHT_NAMES[1] if by_transformers else WEIGHT_NAMES[0]
    return [part / f"{expected}.safetensors"]
