"""TinyWan before training: a real Wan, small enough for two CPU cores, in the diffusers layout.

Every part is the class that Wan2.1 uses, only smaller: `WanTransformer3DModel`, `AutoencoderKLWan`,
`UMT5EncoderModel`, a T5 tokenizer and UniPC. The text encoder keeps its random weights: in a closed
grammar it only has to keep words apart, and one attention layer does that. `make tiny` runs the
whole recipe.

    python -m trainers.tiny.wan init FOLDER --seed 0
"""

import argparse
import copy
import math
import string
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from transformers import T5Tokenizer, UMT5Config, UMT5EncoderModel

from pipelines.files.disk import fingerprint
from pipelines.geometry import WAN21
from pipelines.models.first_frame import first_frame_latents
from pipelines.models.loading import Components, load_components
from trainers.data import prepared
from trainers.data.prepared import PreparedSample, unpadded
from trainers.worlds.shapes import all_captions, render, training_captions

TEXT_LENGTH = 64
TEXT_DIM = 128
ENCODE_BATCH = 32
CLIPS_PER_SHARD = 1024


def build_tokenizer() -> T5Tokenizer:
    """Whole words of the grammar, and single characters for the rest: no prompt is refused."""
    words = sorted({word for caption in all_captions() for word in str(caption).split()})
    characters = string.ascii_letters + string.digits + string.punctuation
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces += [(f"▁{word}", -2.0) for word in words if len(word) > 1]
    pieces += [("▁", -6.0)] + [(character, -10.0) for character in characters]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=TEXT_LENGTH)


def build_text_encoder(vocab_size: int) -> UMT5EncoderModel:
    """One random UMT5 layer."""
    return UMT5EncoderModel(
        UMT5Config(
            vocab_size=vocab_size,
            d_model=TEXT_DIM,
            d_kv=32,
            d_ff=256,
            num_layers=1,
            num_heads=4,
            dropout_rate=0.0,
        )
    )


def build_vae() -> AutoencoderKLWan:
    """A VAE of Wan2.1's geometry.

    Pixels enter as 2x2 patches: a step on 32-pixel crops took 0.19 s instead of 0.30 s.
    """
    return AutoencoderKLWan(
        base_dim=16,
        z_dim=WAN21.num_channels,
        dim_mult=[1, 2, 4],
        num_res_blocks=1,
        temperal_downsample=[True, True],
        patch_size=2,
        in_channels=12,
        out_channels=12,
        latents_mean=[0.0] * WAN21.num_channels,
        latents_std=[1.0] * WAN21.num_channels,
    )


def build_transformer() -> WanTransformer3DModel:
    """About 5 M parameters; 80 tokens for 17 frames of 64x64."""
    return WanTransformer3DModel(
        patch_size=(1, WAN21.patch, WAN21.patch),
        num_attention_heads=4,
        attention_head_dim=48,
        in_channels=WAN21.num_channels,
        out_channels=WAN21.num_channels,
        text_dim=TEXT_DIM,
        freq_dim=256,
        ffn_dim=768,
        num_layers=8,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
    )


@torch.no_grad()
def continue_images(transformer: WanTransformer3DModel) -> WanTransformer3DModel:
    """The same network with room for a mask and an image: 16 + 4 + 16 channels for TinyWan.

    The weights of the new channels are zero, so that it starts as what it was without an image.
    """
    num_channels = transformer.config.out_channels
    in_channels = num_channels + WAN21.temporal_stride + num_channels
    wide = WanTransformer3DModel.from_config({**transformer.config, "in_channels": in_channels})
    weights = transformer.state_dict()
    old, new = weights["patch_embedding.weight"], wide.patch_embedding.weight
    weights["patch_embedding.weight"] = torch.zeros_like(new)
    weights["patch_embedding.weight"][:, :num_channels] = old
    wide.load_state_dict(weights)
    return wide


def build_pipeline(seed: int) -> WanPipeline:
    """All parts with weights drawn from the seed."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    return WanPipeline(
        tokenizer=tokenizer,
        text_encoder=build_text_encoder(len(tokenizer)).eval(),
        vae=build_vae(),
        transformer=build_transformer(),
        scheduler=UniPCMultistepScheduler(
            prediction_type="flow_prediction",
            use_flow_sigmas=True,
            num_train_timesteps=1000,
            flow_shift=3.0,
        ),
    )


@torch.no_grad()
def measure_latents(vae: AutoencoderKLWan, num_clips: int = 256) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each latent channel over rendered training clips."""
    captions = training_captions()
    moments = []
    for seed in range(0, num_clips, 16):
        clips = [render(captions[s * 3 % len(captions)], s) for s in range(seed, seed + 16)]
        video = torch.from_numpy(np.stack(clips)).permute(0, 4, 1, 2, 3) * 2 - 1  # [B, C, F, H, W]
        moments.append(vae.encode(video).latent_dist.mean)
    latents = torch.cat(moments)
    return latents.mean((0, 2, 3, 4)).tolist(), latents.std((0, 2, 3, 4)).tolist()


def install(export: Path, folder: Path) -> None:
    """Puts a run's exported part into the model folder, in half precision to stay small in git."""
    if (export / "vae").is_dir():
        vae = AutoencoderKLWan.from_pretrained(export / "vae").half()
        mean, std = measure_latents(copy.deepcopy(vae).float())
        vae.register_to_config(latents_mean=mean, latents_std=std)
        vae.save_pretrained(folder / "vae")
    elif (export / "transformer").is_dir():
        transformer = WanTransformer3DModel.from_pretrained(export / "transformer")
        transformer.half().save_pretrained(folder / "transformer")
    else:
        raise SystemExit(f"error: {export} holds neither a vae nor a transformer")


@torch.no_grad()
def prepare(model: Path, out: Path, num_clips: int) -> None:
    """Renders training clips and encodes them and their first frames with the model's VAE.

    Goes on where it was ended.
    """
    components = load_components(model, TEXT_LENGTH, "cpu", torch.float32)
    settings = {"model": str(model), "fps": 8, "num_clips": num_clips}
    settings |= {"vae": fingerprint(model / "vae"), "text": components.text_fingerprint}
    prepared.begin(out, settings)
    num_shards = math.ceil(num_clips / CLIPS_PER_SHARD)
    for number in range(num_shards):
        first, end = number * CLIPS_PER_SHARD, min((number + 1) * CLIPS_PER_SHARD, num_clips)
        if not prepared.has_shard(out, number):
            prepared.write_shard(out, number, list(_encoded(components, first, end)))
        print(f"encoded {end} of {num_clips} clips", end="\r", flush=True)
    print()
    negative = components.encode_prompt([""])[0]
    prepared.finish(out, num_shards, negative, TEXT_LENGTH)


def _encoded(components: Components, first: int, end: int) -> Iterator[PreparedSample]:
    """The rendered training clips from number `first` to before `end`."""
    captions = training_captions()
    for start in range(first, end, ENCODE_BATCH):
        seeds = range(start, min(start + ENCODE_BATCH, end))
        chosen = [captions[seed % len(captions)] for seed in seeds]
        clips = [render(caption, seed) for caption, seed in zip(chosen, seeds, strict=True)]
        video = torch.from_numpy(np.stack(clips)).permute(0, 1, 4, 2, 3)
        with torch.autocast("cpu", torch.bfloat16):  # its rounding is far below any noise level
            latents = components.encode(video).half()
        image_latents = first_frame_latents(video[:, 0], video.shape[1], components).half()
        for caption, latent, image in zip(chosen, latents, image_latents, strict=True):
            prompt_embeds = unpadded(components.encode_prompt([str(caption)])[0])
            tensors = {"latents": latent, "prompt_embeds": prompt_embeds, "image_latents": image}
            yield PreparedSample(str(caption), tuple(latent.shape), tensors)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m trainers.tiny.wan")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("init", help="write an untrained TinyWan")
    command.add_argument("folder", type=Path)
    command.add_argument("--seed", type=int, default=0)
    command = commands.add_parser("init-i2v", help="write an untrained image-to-video sibling")
    command.add_argument("model", type=Path)
    command.add_argument("folder", type=Path)
    command = commands.add_parser("install", help="put a run's export into a model folder")
    command.add_argument("export", type=Path)
    command.add_argument("folder", type=Path)
    command = commands.add_parser("prepare", help="render and encode training clips")
    command.add_argument("model", type=Path)
    command.add_argument("out", type=Path)
    command.add_argument("--num-clips", type=int, default=8192)
    options = parser.parse_args()
    if options.command == "init":
        build_pipeline(options.seed).save_pretrained(options.folder)
    elif options.command == "init-i2v":
        trained = WanTransformer3DModel.from_pretrained(options.model / "transformer")
        continue_images(trained).half().save_pretrained(options.folder / "transformer")
    elif options.command == "install":
        install(options.export, options.folder)
    else:
        try:
            prepare(options.model, options.out, options.num_clips)
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)


if __name__ == "__main__":
    main()
