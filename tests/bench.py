"""`make bench`: what the studio costs on this machine, as a table. Ratios come from one run.

Not a test: nothing is asserted, and the figures depend on the machine.
"""

import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from gradio_client import Client
from playwright.sync_api import sync_playwright

from pipelines.catalog.registry import Registry
from pipelines.generate import Clip, generate
from pipelines.lora.apply import apply_adapters
from pipelines.lora.file import save_lora
from pipelines.model_cache import ModelCache
from pipelines.recipe import Adapter, Recipe
from tests.bench_training import bench_dmd2
from tests.studio.conftest import BROWSERS, PROMPT, App, wait_for

RUNS = 5
END_STATES = {"finished", "failed", "cancelled"}


def seconds(action: Callable[[], object], runs: int = RUNS) -> float:
    """The median over `runs`."""
    taken = []
    for _ in range(runs):
        began = time.perf_counter()
        action()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def bench_app(folder: Path) -> list[tuple[str, str]]:
    """From the start of the process to a page that can be used, and to two finished videos."""
    app = App(folder / "data")
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=_chromium(), args=["--no-sandbox"])
            page = browser.new_page()
            began = time.perf_counter()
            app.start()
            page.goto(app.url)
            page.get_by_role("button", name="Generate").wait_for()
            usable_sec = time.perf_counter() - began
            browser.close()
        client = Client(app.url, verbose=False)
        began = time.perf_counter()
        variants = [{"model": "tiny-wan"}, {"model": "tiny-wan", "num_inference_steps": 4}]
        comparison = client.predict(PROMPT, variants, api_name="/submit_compare")

        def done() -> bool:
            cells = client.predict(comparison, api_name="/job_status")["cells"]
            return all(cell["state"] in END_STATES for cell in cells)

        wait_for(done)
        first_sec = time.perf_counter() - began
    finally:
        app.process.terminate()
        app.process.wait(30)
    return [
        ("app start to a usable page", f"{usable_sec:.2f} s"),
        ("first comparison, 30 and 4 steps", f"{first_sec:.2f} s"),
    ]


def _chromium() -> str | None:
    import shutil

    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


def bench_switch(folder: Path) -> list[tuple[str, str]]:
    """Another LoRA on a resident base, against loading the base again."""
    registry = Registry()
    recipe, entry = registry.recipe("tiny-wan", PROMPT), registry.entry("tiny-wan")
    models = ModelCache(registry, "cpu")
    transformer = models.components(recipe, entry).transformer
    adapters = [_random_lora(transformer, folder / f"{n}.safetensors") for n in range(2)]
    for adapter in adapters:  # read from disk once
        apply_adapters(transformer, [adapter])
    switch_sec = seconds(lambda: [apply_adapters(transformer, [a]) for a in adapters]) / 2
    cold_sec = seconds(lambda: ModelCache(registry, "cpu").components(recipe, entry))
    return [
        ("variant switch (LoRA on a resident base)", f"{switch_sec * 1000:.1f} ms"),
        ("loading from scratch", f"{cold_sec * 1000:.0f} ms"),
        ("ratio", f"{cold_sec / switch_sec:.0f}x"),
    ]


def _random_lora(transformer: torch.nn.Module, path: Path) -> Adapter:
    weights = {}
    for name, module in transformer.named_modules():
        if isinstance(module, torch.nn.Linear) and name.endswith(("to_q", "to_v")):
            weights[f"{name}.lora_A.weight"] = torch.randn(8, module.in_features) * 0.02
            weights[f"{name}.lora_B.weight"] = torch.randn(module.out_features, 8) * 0.02
    save_lora(weights, path, rank=8, alpha=8.0)
    return Adapter(path=str(path))


def bench_steps(folder: Path) -> list[tuple[str, str]]:
    """30 steps with guidance against 4 steps without."""
    registry = Registry()
    models = ModelCache(registry, "cpu")
    many = registry.recipe("tiny-wan", PROMPT, sampler={"num_inference_steps": 30})
    few = registry.recipe(
        "tiny-wan", PROMPT, sampler={"num_inference_steps": 4, "guidance_scale": 1.0}
    )

    def run(recipe: Recipe) -> Clip:
        *_, clip = generate(recipe, models, folder / "clip.mp4")
        assert isinstance(clip, Clip)
        return clip

    run(few)  # loads the model
    slow, fast = ([run(recipe) for _ in range(RUNS)] for recipe in (many, few))
    rows = []
    for name in ("denoise", "total"):
        pair = [
            statistics.median(getattr(c, f"{name}_sec") for c in clips) for clips in (slow, fast)
        ]
        shown = f"{pair[0]:.2f} s, {pair[1]:.2f} s, {pair[0] / pair[1]:.1f}x"
        title = "denoise" if name == "denoise" else "end to end"
        rows.append(
            (f"{title}: {slow[0].num_forwards} forwards, {fast[0].num_forwards}, ratio", shown)
        )
    return rows


def main() -> None:
    """Prints the table."""
    print(
        f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, ", end=""
    )
    print(f"torch {torch.__version__}, TinyWan 64x64, 17 frames, medians of {RUNS}\n")
    print("| what | figure |\n|---|---|")
    with tempfile.TemporaryDirectory() as name:
        for bench in (bench_app, bench_switch, bench_steps, bench_dmd2):
            for what, figure in bench(Path(name)):
                print(f"| {what} | {figure} |", flush=True)


if __name__ == "__main__":
    main()
