"""How a model lies in each layout's files; `pipelines/formats/convert.py` calls these.

ComfyUI takes transformer and VAE by Wan's own names, text encoder and CLIP by transformers', each
in one file of a folder for its kind, and the text encoder's SentencePiece model as a tensor.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanTransformer3DModel
from diffusers import __version__ as diffusers_version
from transformers import (
    AutoTokenizer,
    CLIPImageProcessor,
    CLIPVisionConfig,
    PreTrainedConfig,
    UMT5Config,
)

from pipelines.catalog.entries import CheckpointSpec
from pipelines.files.diffusers_layout import IMAGE_PIPELINE
from pipelines.files.wan_layout import (
    IMAGE_ENCODER_FILE,
    TEXT_ENCODER_FILE,
    TOKENIZER,
    TRANSFORMER_FILE,
    VAE_FILE,
)
from pipelines.files.weight_configs import (
    HEAD_DIM,
    Config,
    native_transformer_config,
    text_encoder_config,
    vae_config,
)
from pipelines.files.weight_names import TEXT_ENCODER, TRANSFORMER, NameTable, vae_size, vae_table
from pipelines.formats.clip import OLD_PREFIX, native_image_encoder
from pipelines.formats.parts import StoredNetwork
from pipelines.formats.weights import Weight, save_safetensors

SHARD_BYTES = 5 * 10**9
SENTENCEPIECE = "spiece.model"


@dataclass(frozen=True)
class Companions:
    """All of a model but its transformer."""

    vae: StoredNetwork
    text_encoder: StoredNetwork
    tokenizer: Path
    image_encoder: StoredNetwork | None


@dataclass(frozen=True)
class StoredModel:
    """What is converted; `name` is for files that have no name of their own."""

    name: str
    transformer: StoredNetwork
    companions: Companions | None = None

    @property
    def parts(self) -> list[StoredNetwork]:
        """All networks."""
        others = self.companions
        if others is None:
            return [self.transformer]
        found = [self.transformer, others.vae, others.text_encoder, others.image_encoder]
        return [part for part in found if part is not None]


def write_diffusers(model: StoredModel, folder: Path, spec: CheckpointSpec) -> tuple[str, ...]:
    """A pipeline's folder that stock diffusers loads, or a transformer's."""
    others = model.companions
    if others is None:
        _write_network(WanTransformer3DModel, model.transformer, folder)
        return ()
    _write_network(WanTransformer3DModel, model.transformer, folder / "transformer")
    _write_network(AutoencoderKLWan, others.vae, folder / "vae")
    _write_encoder(UMT5Config, "UMT5EncoderModel", others.text_encoder, folder / "text_encoder")
    shutil.copytree(others.tokenizer, folder / "tokenizer")
    if others.image_encoder is not None:
        encoder = folder / "image_encoder"
        _write_encoder(CLIPVisionConfig, "CLIPVisionModel", others.image_encoder, encoder)
        CLIPImageProcessor().save_pretrained(folder / "image_processor")
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=spec.sampler.flow_shift,
    )
    scheduler.save_pretrained(folder / "scheduler")
    tokenizer = AutoTokenizer.from_pretrained(others.tokenizer, local_files_only=True)
    index = {
        "_class_name": IMAGE_PIPELINE if spec.takes_image else "WanPipeline",
        "_diffusers_version": diffusers_version,
        "scheduler": ["diffusers", type(scheduler).__name__],
        "text_encoder": ["transformers", "UMT5EncoderModel"],
        "tokenizer": ["transformers", type(tokenizer).__name__],
        "transformer": ["diffusers", "WanTransformer3DModel"],
        "vae": ["diffusers", "AutoencoderKLWan"],
    }
    if others.image_encoder is not None:
        index["image_encoder"] = ["transformers", "CLIPVisionModel"]
        index["image_processor"] = ["transformers", "CLIPImageProcessor"]
    _write_json(folder / "model_index.json", index)
    return ()


def _write_network(network: Any, part: StoredNetwork, folder: Path) -> None:
    save_sharded(part.tensors, folder, TRANSFORMER_FILE, part.metadata)
    with init_empty_weights():
        network.from_config(part.config).save_config(folder)


def _write_encoder(
    config: type[PreTrainedConfig], architecture: str, part: StoredNetwork, folder: Path
) -> None:
    save_sharded(part.tensors, folder, "model")
    config(**part.config | {"architectures": [architecture]}).save_pretrained(folder)


def write_native(model: StoredModel, folder: Path, spec: CheckpointSpec) -> tuple[str, ...]:
    """A folder as Wan-Video publishes it; what its files cannot say goes into FILE.json."""
    transformer, others = model.transformer, model.companions
    metadata = {"config": json.dumps(transformer.config), **transformer.metadata}
    save_sharded(_native(transformer, TRANSFORMER), folder, TRANSFORMER_FILE, metadata)
    config = native_transformer_config(transformer.config, spec.text_length)
    _write_json(folder / "config.json", config)
    if others is None:
        return ()
    _write_pickle(_native(others.vae, _vae_table(others.vae)), folder / VAE_FILE)
    _write_pickle(_native(others.text_encoder, TEXT_ENCODER), folder / TEXT_ENCODER_FILE)
    _write_unsaid(others.vae, _inferred_vae_config(others.vae), folder / VAE_FILE)
    inferred = text_encoder_config(others.text_encoder.shapes)
    _write_unsaid(others.text_encoder, inferred, folder / TEXT_ENCODER_FILE)
    shutil.copytree(others.tokenizer, folder / TOKENIZER)
    if others.image_encoder is None:
        return ()
    _write_pickle(native_image_encoder(others.image_encoder), folder / IMAGE_ENCODER_FILE)
    return (
        f"{IMAGE_ENCODER_FILE} holds the half of CLIP that sees; Wan's own code wants the text "
        "half too, though it never runs it: there, use the published file",
    )


def _vae_table(part: StoredNetwork) -> NameTable:
    return vae_table(*vae_size(part.tensors))


def _inferred_vae_config(part: StoredNetwork) -> Config:
    """What a reader of Wan's own file takes the VAE's configuration for."""
    with init_empty_weights():
        return dict(AutoencoderKLWan.from_config(vae_config(part.shapes)).config)


def _write_unsaid(part: StoredNetwork, inferred: Config, file: Path) -> None:
    unsaid = {k: v for k, v in part.config.items() if k in inferred and inferred[k] != v}
    unsaid = {key: value for key, value in unsaid.items() if not key.startswith("_")}
    if unsaid:
        _write_json(file.with_suffix(".json"), unsaid)


def write_comfyui(model: StoredModel, folder: Path, spec: CheckpointSpec) -> tuple[str, ...]:
    """Folders to put into ComfyUI's models/, with one file each."""
    transformer, others = model.transformer, model.companions
    file = f"{model.name}.safetensors"
    metadata = {"config": json.dumps(transformer.config), **transformer.metadata}
    native = _native(transformer, TRANSFORMER)
    _write_single(native, folder / "diffusion_models" / file, metadata)
    head_dim = transformer.config["attention_head_dim"]
    notes: tuple[str, ...] = ()
    if head_dim != HEAD_DIM:
        notes = (f"ComfyUI takes every head to have {HEAD_DIM} channels; here one has {head_dim}",)
    if others is None:
        return notes
    _write_single(_native(others.vae, _vae_table(others.vae)), folder / "vae" / file)
    text = dict(others.text_encoder.tensors)
    if (others.tokenizer / SENTENCEPIECE).is_file():
        text["spiece_model"] = _bytes_of(others.tokenizer / SENTENCEPIECE)
    else:
        notes += (f"the tokenizer has no {SENTENCEPIECE}, which ComfyUI reads prompts with",)
    _write_single(text, folder / "text_encoders" / file)
    if others.image_encoder is not None:
        tensors = others.image_encoder.tensors
        named = {OLD_PREFIX + n.removeprefix(OLD_PREFIX): w for n, w in tensors.items()}
        _write_single(named, folder / "clip_vision" / file)
    return notes


def _write_single(
    tensors: Mapping[str, Weight], file: Path, metadata: dict[str, str] | None = None
) -> None:
    file.parent.mkdir()
    save_safetensors(file, tensors, metadata or {})


def _bytes_of(file: Path) -> Weight:
    def read(mapped: bool = False) -> torch.Tensor:
        return torch.frombuffer(bytearray(file.read_bytes()), dtype=torch.uint8)

    return Weight((file.stat().st_size,), torch.uint8, read)


def _native(part: StoredNetwork, table: NameTable) -> dict[str, Weight]:
    renamed = {}
    for name, weight in part.tensors.items():
        theirs = table.to_native(name)
        if theirs is None:
            raise ValueError(f"source: {name} has no place in Wan's own layout")
        renamed[theirs] = weight
    return renamed


def save_sharded(
    tensors: Mapping[str, Weight], folder: Path, stem: str, metadata: dict[str, str] | None = None
) -> None:
    """Writes `folder/STEM.safetensors`, or shards of at most 5 GB with an index."""
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[dict[str, Weight]] = [{}]
    size = 0
    for name, weight in tensors.items():
        if shards[-1] and size + weight.num_bytes > SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][name] = weight
        size += weight.num_bytes
    if len(shards) == 1:
        save_safetensors(folder / f"{stem}.safetensors", shards[0], metadata or {})
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"{stem}-{number:05}-of-{len(shards):05}.safetensors"
        save_safetensors(folder / file, shard, metadata or {})
        weight_map |= dict.fromkeys(shard, file)
    total = sum(weight.num_bytes for weight in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    _write_json(folder / f"{stem}.safetensors.index.json", index)


def _write_pickle(tensors: Mapping[str, Weight], file: Path) -> None:
    torch.save({name: weight.read(mapped=True) for name, weight in tensors.items()}, file)


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
