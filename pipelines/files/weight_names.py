"""Names of weights in Wan's own files and in diffusers', one to one, for each network.

`{}` stands for a number that both sides share. diffusers has the same tables
(`convert_wan_transformer_to_diffusers`, `convert_wan_vae_to_diffusers`), but one way only, with
torch, without the guidance embedder and FLF2V's positions, and for a VAE with two residual blocks a
stage alone; for the text encoder it has none. A test compares them for Wan2.1.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

NATIVE_TO_DIFFUSERS = {
    "patch_embedding": "patch_embedding",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "img_emb.proj.0": "condition_embedder.image_embedder.norm1",
    "img_emb.proj.1": "condition_embedder.image_embedder.ff.net.0.proj",
    "img_emb.proj.3": "condition_embedder.image_embedder.ff.net.2",
    "img_emb.proj.4": "condition_embedder.image_embedder.norm2",
    "img_emb.emb_pos": "condition_embedder.image_embedder.pos_embed",
    "blocks.{}.self_attn.q": "blocks.{}.attn1.to_q",
    "blocks.{}.self_attn.k": "blocks.{}.attn1.to_k",
    "blocks.{}.self_attn.v": "blocks.{}.attn1.to_v",
    "blocks.{}.self_attn.o": "blocks.{}.attn1.to_out.0",
    "blocks.{}.self_attn.norm_q": "blocks.{}.attn1.norm_q",
    "blocks.{}.self_attn.norm_k": "blocks.{}.attn1.norm_k",
    "blocks.{}.cross_attn.q": "blocks.{}.attn2.to_q",
    "blocks.{}.cross_attn.k": "blocks.{}.attn2.to_k",
    "blocks.{}.cross_attn.v": "blocks.{}.attn2.to_v",
    "blocks.{}.cross_attn.o": "blocks.{}.attn2.to_out.0",
    "blocks.{}.cross_attn.norm_q": "blocks.{}.attn2.norm_q",
    "blocks.{}.cross_attn.norm_k": "blocks.{}.attn2.norm_k",
    "blocks.{}.cross_attn.k_img": "blocks.{}.attn2.add_k_proj",
    "blocks.{}.cross_attn.v_img": "blocks.{}.attn2.add_v_proj",
    "blocks.{}.cross_attn.norm_k_img": "blocks.{}.attn2.norm_added_k",
    "blocks.{}.norm3": "blocks.{}.norm2",
    "blocks.{}.ffn.0": "blocks.{}.ffn.net.0.proj",
    "blocks.{}.ffn.2": "blocks.{}.ffn.net.2",
    "blocks.{}.modulation": "blocks.{}.scale_shift_table",
    "head.head": "proj_out",
    "head.modulation": "scale_shift_table",
}
# What trainers and other programs put before or between the names of a transformer's weights.
WRAPPERS = ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_orig_mod.")
PREFIXES = ("model.diffusion_model.", "diffusion_model.", "module.", "model.")
LEAF = r"(?P<leaf>(?:\.(?:weight|bias|gamma))?)"


@dataclass(frozen=True)
class NameTable:
    """Pairs (native, diffusers) of module or parameter names."""

    pairs: tuple[tuple[str, str], ...]

    def to_diffusers(self, name: str) -> str | None:
        """The diffusers name of a native weight; None where the network has no such weight."""
        return _rename(name, self._from_native)

    def to_native(self, name: str) -> str | None:
        """The native name of a diffusers weight; None where the network has no such weight."""
        return _rename(name, self._from_diffusers)

    @cached_property
    def _from_native(self) -> list[tuple[re.Pattern[str], str]]:
        return [(_pattern(native), diffusers) for native, diffusers in self.pairs]

    @cached_property
    def _from_diffusers(self) -> list[tuple[re.Pattern[str], str]]:
        return [(_pattern(diffusers), native) for native, diffusers in self.pairs]


def _pattern(template: str) -> re.Pattern[str]:
    return re.compile(re.escape(template).replace(r"\{\}", r"(\d+)") + LEAF)


def _rename(name: str, rules: Iterable[tuple[re.Pattern[str], str]]) -> str | None:
    for pattern, template in rules:
        if match := pattern.fullmatch(name):
            leaf = match["leaf"]
            numbers = match.groups()[:-1]
            for number in numbers:
                template = template.replace("{}", number, 1)
            return template + leaf
    return None


TIME = "condition_embedder.time_embedder"
TRANSFORMER = NameTable(
    (
        *NATIVE_TO_DIFFUSERS.items(),
        ("guidance_embedding.0", f"{TIME}.guidance_embedder.linear_1"),
        ("guidance_embedding.2", f"{TIME}.guidance_embedder.linear_2"),
    )
)

TEXT_ENCODER = NameTable(
    (
        ("token_embedding", "shared"),
        ("norm", "encoder.final_layer_norm"),
        ("blocks.{}.norm1", "encoder.block.{}.layer.0.layer_norm"),
        ("blocks.{}.attn.q", "encoder.block.{}.layer.0.SelfAttention.q"),
        ("blocks.{}.attn.k", "encoder.block.{}.layer.0.SelfAttention.k"),
        ("blocks.{}.attn.v", "encoder.block.{}.layer.0.SelfAttention.v"),
        ("blocks.{}.attn.o", "encoder.block.{}.layer.0.SelfAttention.o"),
        (
            "blocks.{}.pos_embedding.embedding",
            "encoder.block.{}.layer.0.SelfAttention.relative_attention_bias",
        ),
        ("blocks.{}.norm2", "encoder.block.{}.layer.1.layer_norm"),
        ("blocks.{}.ffn.gate.0", "encoder.block.{}.layer.1.DenseReluDense.wi_0"),
        ("blocks.{}.ffn.fc1", "encoder.block.{}.layer.1.DenseReluDense.wi_1"),
        ("blocks.{}.ffn.fc2", "encoder.block.{}.layer.1.DenseReluDense.wo"),
    )
)


def vae_table(num_res_blocks: int, num_stages: int) -> NameTable:
    """The VAE's names; Wan2.1 has 2 residual blocks a stage and 4 stages.

    Both encoders number their blocks in one row. In the decoder, which has one residual block more
    a stage, diffusers numbers by stage.
    """
    pairs = [("conv1", "quant_conv"), ("conv2", "post_quant_conv")]
    for half in ("encoder", "decoder"):
        pairs += [
            (f"{half}.conv1", f"{half}.conv_in"),
            (f"{half}.head.0", f"{half}.norm_out"),
            (f"{half}.head.2", f"{half}.conv_out"),
            *_residual(f"{half}.middle.0", f"{half}.mid_block.resnets.0"),
            *_residual(f"{half}.middle.2", f"{half}.mid_block.resnets.1"),
        ]
        pairs += [
            (f"{half}.middle.1.{layer}", f"{half}.mid_block.attentions.0.{layer}")
            for layer in ("norm", "to_qkv", "proj")
        ]
    pairs += _residual("encoder.downsamples.{}", "encoder.down_blocks.{}")
    pairs += _resampler("encoder.downsamples.{}", "encoder.down_blocks.{}")
    for stage in range(num_stages):
        start, block = stage * (num_res_blocks + 2), f"decoder.up_blocks.{stage}"
        for index in range(num_res_blocks + 1):
            pairs += _residual(f"decoder.upsamples.{start + index}", f"{block}.resnets.{index}")
        last = start + num_res_blocks + 1
        pairs += _resampler(f"decoder.upsamples.{last}", f"{block}.upsamplers.0")
    return NameTable(tuple(pairs))


def _residual(native: str, diffusers: str) -> list[tuple[str, str]]:
    layers = {"0": "norm1", "2": "conv1", "3": "norm2", "6": "conv2"}
    pairs = [(f"{native}.residual.{a}", f"{diffusers}.{b}") for a, b in layers.items()]
    return [*pairs, (f"{native}.shortcut", f"{diffusers}.conv_shortcut")]


def _resampler(native: str, diffusers: str) -> list[tuple[str, str]]:
    return [(f"{native}.{layer}", f"{diffusers}.{layer}") for layer in ("resample.1", "time_conv")]


def vae_size(names: Iterable[str]) -> tuple[int, int]:
    """(num_res_blocks, num_stages) of a VAE with these names, native or diffusers'."""
    rows = [re.match(r"encoder\.(?:downsamples|down_blocks)\.(\d+)\.(.+)", n) for n in names]
    kinds = {int(row[1]): "resample." in row[2] or "time_conv" in row[2] for row in rows if row}
    samplers = sorted(index for index, resamples in kinds.items() if resamples)
    return (samplers[0] if samplers else len(kinds)), len(samplers) + 1


def has_guidance(names: Iterable[str]) -> bool:
    """Whether a transformer with these names, of any layout, takes guidance as an input."""
    return any("guidance_embed" in name for name in names)


def has_original_guidance(names: Iterable[str]) -> bool:
    """Whether the guidance embedder is called as in distill_wan2.1 and DMD2_wanx."""
    return any(re.search(r"\bguidance_embedding\.[02]\.", name) for name in names)


def plain_names(names: Iterable[str]) -> dict[str, str]:
    """Names of a transformer's weights -> the same without wrappers and a program's prefix."""
    plain = {}
    for name in names:
        short = name
        for wrapper in WRAPPERS:
            short = short.replace(wrapper, "")
        for prefix in PREFIXES:
            short = short.removeprefix(prefix)
        plain[name] = re.sub(r"^guidance_embedding\.linear_([12])", _as_sequential, short)
    return plain


def _as_sequential(match: re.Match[str]) -> str:
    """LightX2V calls the two layers of the guidance embedder by name, distill_wan2.1 by number."""
    return f"guidance_embedding.{ {'1': 0, '2': 2}[match[1]] }"


def diffusers_names(names: Iterable[str]) -> dict[str, str] | None:
    """Names of a transformer's weights in any file -> diffusers' names; None for another network.

    Names that diffusers has already stay. A weight that Wan2.1 does not have makes it another
    network: VACE, Animate, a quantised file, a LoRA.
    """
    renamed: dict[str, str] = {}
    for name, plain in plain_names(names).items():
        theirs = TRANSFORMER.to_diffusers(plain)
        if theirs is None and TRANSFORMER.to_native(plain) is not None:
            theirs = plain
        if theirs is None:
            return None
        renamed[name] = theirs
    return renamed


def architecture(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """What a file with these tensors is, in a few words, for a message."""
    names = plain_names(shapes).values()
    marks = {
        "a VACE transformer": "vace_blocks.",
        "a Wan Animate transformer": "motion_encoder.",
        "a quantised transformer": "weight_scale",
        "a quantised transformer, scaled": "scale_weight",
        "a LoRA": "lora_",
        "a VAE": "decoder.",
        "a text encoder": "token_embedding",
    }
    for text, mark in marks.items():
        if any(mark in name for name in names):
            return text
    return "no Wan2.1 transformer"
