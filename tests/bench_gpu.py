"""`make bench-gpu`: seconds and peak memory of Wan2.1's real shapes on an accelerator, as a table.

Random weights, so nothing is downloaded and nothing is seen; the work and the memory are those of
the real checkpoints. Stock diffusers' pipeline and ours share the same networks in one process.
"""

import argparse
import platform
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from transformers import AutoTokenizer, UMT5Config, UMT5EncoderModel

from pipelines.generate import sample_video
from pipelines.memory import PLAIN, MemorySettings, memory_words
from pipelines.models.fit_memory import GB, device_bytes, plan_memory
from pipelines.models.loading import Components, best_dtype
from pipelines.models.placement import Placement, sizes
from pipelines.recipe import Recipe, SamplerSpec
from pipelines.sampling.denoiser import Denoiser

TOKENIZER = Path(__file__).parents[1] / "assets" / "tiny-wan" / "tokenizer"
PROMPT = "a large red circle moving right on a navy background"
SMALL_DEVICE_BYTES = 16 * GB  # what the last row must do with
TEXT = {"vocab_size": 256384, "d_model": 4096, "d_ff": 10240, "num_layers": 24, "num_heads": 64}


@dataclass(frozen=True)
class Shape:
    """What the config.json files of a checkpoint say, and the video it was trained for."""

    name: str
    transformer: dict[str, Any]
    text: dict[str, Any] = field(default_factory=lambda: TEXT)
    vae: dict[str, Any] = field(default_factory=dict)
    text_length: int = 512
    width: int = 832
    height: int = 480
    num_frames: int = 81


SHAPES = {
    "1.3B": Shape("1.3B", {"num_attention_heads": 12, "num_layers": 30, "ffn_dim": 8960}),
    "14B": Shape("14B", {"num_attention_heads": 40, "num_layers": 40, "ffn_dim": 13824}),
}


@dataclass(frozen=True)
class Row:
    """One line of the table; `peak_bytes` is None where the device does not count."""

    shape: str
    what: str
    num_forwards: int
    total_sec: float
    denoise_sec: float
    peak_bytes: int | None
    estimate_bytes: float


class Watch:
    """Forwards of a transformer, and the seconds from the start of the first to the last's end."""

    def __init__(self, transformer: WanTransformer3DModel):
        self.num_forwards, self.began_sec, self.ended_sec = 0, 0.0, 0.0
        self.handles = [
            transformer.register_forward_pre_hook(self._begin),
            transformer.register_forward_hook(self._end),
        ]

    def _begin(self, *_: object) -> None:
        if self.num_forwards == 0:
            self.began_sec = now_sec()

    def _end(self, *_: object) -> None:
        self.num_forwards += 1
        self.ended_sec = now_sec()

    def close(self) -> None:
        for handle in self.handles:
            handle.remove()


def now_sec() -> float:
    """Once all work that is queued is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """14B parameters in fp32 would not fit before they are cast."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def build(shape: Shape, device: str) -> Components:
    """The networks with random weights."""
    dtype = best_dtype(device)
    with torch.device(device):
        with default_dtype(dtype):
            text = UMT5Config(**shape.text)
            transformer = WanTransformer3DModel(**shape.transformer, text_dim=text.d_model)
            text_encoder = UMT5EncoderModel(text)
        vae = AutoencoderKLWan(**shape.vae)
    for network in (transformer, text_encoder, vae):
        network.requires_grad_(False).eval()
    return Components(
        text_encoder=text_encoder,
        tokenizer=AutoTokenizer.from_pretrained(TOKENIZER, local_files_only=True),
        text_length=shape.text_length,
        text_fingerprint="random",
        vae=vae,
        transformer=transformer,
    )


def recipe(shape: Shape, sampler: SamplerSpec) -> Recipe:
    return Recipe(
        model=shape.name,
        prompt=PROMPT,
        sampler=sampler,
        width=shape.width,
        height=shape.height,
        num_frames=shape.num_frames,
    )


def stock(components: Components, made: Recipe) -> None:
    """diffusers' own pipeline, as its documentation calls it."""
    pipeline = WanPipeline(
        tokenizer=components.tokenizer,
        text_encoder=components.text_encoder,
        vae=components.vae,
        transformer=components.transformer,
        scheduler=UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
    )
    pipeline.set_progress_bar_config(disable=True)
    pipeline(
        made.prompt,
        height=made.height,
        width=made.width,
        num_frames=made.num_frames,
        num_inference_steps=made.sampler.num_inference_steps,
        guidance_scale=made.sampler.guidance_scale,
        max_sequence_length=components.text_length,
        output_type="pt",
    )


def ours(components: Components, made: Recipe) -> None:
    sample_video(made, components, components, Denoiser(components.transformer))


def measure(
    components: Components, what: str, made: Recipe, run: Callable[[Components, Recipe], None],
    settings: MemorySettings = PLAIN,
) -> Row:  # fmt: skip
    """One run from the prompt to the decoded video."""
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    watch, began_sec = Watch(components.transformer), now_sec()
    run(components, made)
    total_sec = now_sec() - began_sec
    watch.close()
    return Row(
        shape=made.model,
        what=what,
        num_forwards=watch.num_forwards,
        total_sec=total_sec,
        denoise_sec=watch.ended_sec - watch.began_sec,
        peak_bytes=torch.cuda.max_memory_reserved() if cuda else None,
        estimate_bytes=device_bytes(sizes(components, made), settings),
    )


def bench(shape: Shape, device: str, num_steps: int) -> Iterator[Row]:
    """Stock, ours, a student in four steps, and the student on a small device."""
    components = build(shape, device)
    base = SamplerSpec(num_inference_steps=num_steps, flow_shift=3.0, guidance_scale=5.0)
    student = SamplerSpec(
        name="lcm", num_inference_steps=4, guidance_scale=1.0, guidance_mode="off"
    )
    warm_up = base.model_copy(update={"num_inference_steps": 1})
    ours(components, recipe(shape, warm_up))
    yield measure(components, f"diffusers, {num_steps} steps", recipe(shape, base), stock)
    yield measure(components, f"ours, {num_steps} steps", recipe(shape, base), ours)
    few = recipe(shape, student)
    yield measure(components, "ours, 4-step student", few, ours)
    for network in (components.transformer, components.text_encoder, components.vae):
        network.to("cpu")
    shape_sizes, free_ram = sizes(components, few), psutil.virtual_memory().available
    settings = plan_memory(shape_sizes, SMALL_DEVICE_BYTES, free_ram).settings
    fitted_recipe = few.model_copy(update={"memory": memory_words(settings)})
    placement = Placement(components, device, fitted_recipe)

    def fitted(components: Components, made: Recipe) -> None:
        sample_video(made, placement, components, Denoiser(components.transformer))

    words = f"ours, 4-step student, fit to {SMALL_DEVICE_BYTES / GB:.0f} GB"
    yield measure(components, words, few, fitted, settings)


def table(rows: list[Row], device: str) -> str:
    """Markdown."""
    lines = [
        f"{device}, torch {torch.__version__}, Python {platform.python_version()}",
        "",
        "| shape | pipeline | forwards | seconds | of these denoising | peak GB | estimated GB |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        peak = "" if row.peak_bytes is None else f"{row.peak_bytes / GB:.1f}"
        lines.append(
            f"| {row.shape} | {row.what} | {row.num_forwards} | {row.total_sec:.1f} | "
            f"{row.denoise_sec:.1f} | {peak} | {row.estimate_bytes / GB:.1f} |"
        )
    return "\n".join(lines) + "\n"


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench_gpu", description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, action="append", help="default: all")
    parser.add_argument("--steps", type=int, default=50, help="of the base model")
    parser.add_argument("--out", type=Path, default=Path("bench-gpu.md"))
    options = parser.parse_args(words)
    if not torch.cuda.is_available():
        print(
            "error: bench-gpu needs a CUDA device with 48 GB for 1.3B or 80 GB for 14B, and there "
            "is none here",
            file=sys.stderr,
        )
        return 2
    rows: list[Row] = []
    for name in options.shape or SHAPES:
        for row in bench(SHAPES[name], "cuda", options.steps):
            rows.append(row)
            shown = table(rows, torch.cuda.get_device_name())
            options.out.write_text(shown)  # after each row: the long ones may be cut short
        print(shown)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
