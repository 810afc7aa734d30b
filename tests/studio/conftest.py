"""Real studios: `app.py` as its own process on a free port, with TinyWan and fresh data."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright
from safetensors.numpy import save_file

from pipelines.catalog.registry import Registry
from pipelines.recipe import Recipe
from studio.clips.store import Job, Store
from studio.clips.workers import store_path
from studio.runs.supervisor import Supervisor
from tests.conftest import HANG_SEC, wait_for
from tests.pipelines.conftest import write_preview_decoder
from tests.trainers.conftest import config_tree, micro_data, whole_model  # noqa: F401

PAGE_MS = 300_000  # 1 s is usual, and many times that on a busy machine
expect.set_options(timeout=PAGE_MS)

ROOT = Path(__file__).resolve().parents[2]
TINY_WAN = ROOT / "assets" / "tiny-wan"
PROMPT = "a large red circle moving right on a navy background"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
LOCAL = re.compile(r"(https?://127\.0\.0\.1[:/]|data:|blob:)")


def tiny_recipe(steps: int = 1, guidance: float = 1.0, seed: int = 0) -> Recipe:
    sampler = {"num_inference_steps": steps, "guidance_scale": guidance}
    return Registry().recipe("tiny-wan", PROMPT, seed=seed, sampler=sampler, num_frames=5)


class App:
    """One studio process and its data folder; it can be killed and started again."""

    def __init__(self, data: Path):
        self.data = data
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/"

    def start(self, *options: str) -> "App":
        command = [sys.executable, "app.py", "--port", str(self.port), "--data", str(self.data)]
        command += ["--runs", str(self.data / "runs")]
        self.data.mkdir(exist_ok=True)
        with (self.data / "app.log").open("a") as log:
            self.process = subprocess.Popen(
                [*command, "--device", "cpu", *options],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )
        wait_for(self.answers)
        self.store = Store(store_path(self.data))
        return self

    def answers(self) -> bool:
        assert self.process.poll() is None, (self.data / "app.log").read_text()
        try:
            return urllib.request.urlopen(self.url, timeout=HANG_SEC).status == 200
        except (urllib.error.URLError, ConnectionError):
            return False

    def workers(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def job(self, key: str, *states: str) -> Job:
        """The newest job of a recipe once it is in one of these states."""

        def look() -> Job | None:
            job = self.store.latest_job(key)
            return job if job is not None and job.state in states else None

        return wait_for(look)

    def stepping(self, key: str) -> Job:
        """The job once a worker has begun to denoise."""

        def look() -> Job | None:
            job = self.job(key, "running")
            return job if job.phase == "denoise" and job.step else None

        return wait_for(look)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=HANG_SEC)


@pytest.fixture(scope="session")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder: `student`, TinyWan said to be distilled, and the LoRA `style`.

    `wan-latents` is TinyWan said to have the latents of Wan2.1, which preview decoders read.
    """
    folder = tmp_path_factory.mktemp("models")
    student = folder / "student"
    student.mkdir()
    for part in TINY_WAN.iterdir():
        (student / part.name).symlink_to(part)
    sampler = {"num_inference_steps": 2, "guidance_scale": 1.0, "guidance_mode": "off"}
    spec = {"sampler": sampler, "text_length": 64, "num_frames": 17, "fps": 8}
    (student / "sampler.json").write_text(json.dumps(spec | {"width": 64, "height": 64}))
    claimed = shutil.copytree(student, folder / "wan-latents", symlinks=True)
    (claimed / "vae").unlink()
    shutil.copytree(TINY_WAN / "vae", claimed / "vae")
    config = json.loads((claimed / "vae" / "config.json").read_text())
    del config["latents_mean"], config["latents_std"]  # what diffusers takes then is Wan2.1's
    (claimed / "vae" / "config.json").write_text(json.dumps(config))
    config = json.loads((TINY_WAN / "transformer" / "config.json").read_text())
    width = config["num_attention_heads"] * config["attention_head_dim"]
    rng = np.random.default_rng(0)
    pair = {"lora_A": (4, width), "lora_B": (width, 4)}
    tensors = {
        f"transformer.blocks.0.attn1.to_q.{name}.weight": rng.normal(size=shape).astype(np.float32)
        for name, shape in pair.items()
    }
    save_file(tensors, folder / "style.safetensors")
    return folder


@pytest.fixture(scope="session")
def app(tmp_path_factory: pytest.TempPathFactory, models_dir: Path) -> Iterator[App]:
    """The studio that most tests share."""
    preview = write_preview_decoder(tmp_path_factory.mktemp("preview") / "taew2_1.pth")
    options = ("--models", str(models_dir), "--preview-decoder", str(preview))
    running = App(tmp_path_factory.mktemp("studio")).start(*options)
    yield running
    running.stop()


@pytest.fixture(scope="module")
def mortal_app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    """A studio for tests that kill it and start it again. In the end it is killed for good."""
    running = App(tmp_path_factory.mktemp("mortal")).start()
    yield running
    workers = running.workers()
    running.kill()
    assert psutil.wait_procs(workers, timeout=HANG_SEC)[1] == [], "a worker outlived its studio"


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """The system's Chromium or Playwright's own. Without one: a failure in CI, else a skip."""
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    with sync_playwright() as playwright:
        own = Path(playwright.chromium.executable_path)
        if found is None and not own.exists():
            reason = (
                "no Chromium: install the package chromium or run `playwright install chromium`"
            )
            if os.environ.get("CI"):
                pytest.fail(reason)
            pytest.skip(reason)
        running = playwright.chromium.launch(
            executable_path=found or str(own), args=["--no-sandbox"]
        )
        yield running
        running.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(PAGE_MS)
    yield context.new_page()
    context.close()


@pytest.fixture
def compare(app: App, page: Page) -> Iterator[Page]:
    """The page, opened. Every request it makes must stay on this machine."""
    outside: list[str] = []
    page.on("request", lambda r: None if LOCAL.match(r.url) else outside.append(r.url))
    page.goto(app.url)
    expect(page.locator("#forecast")).not_to_be_empty()
    yield page
    assert outside == []


def no_scroll_sideways(page: Page) -> None:
    """As wide as a phone and as a tablet, whatever is shown fits; then it is wide again."""
    size = page.viewport_size
    assert size is not None
    for width in (390, 768):
        page.set_viewport_size({"width": width, "height": 844})
        page.wait_for_function(f"document.documentElement.scrollWidth <= {width}")
    page.set_viewport_size(size)


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisor]:
    """One that has not been started; in the end it kills what still runs."""
    supervisor = Supervisor(tmp_path / "runs")
    yield supervisor
    for run in supervisor.runs():
        if run.state in ("starting", "running", "stopping"):
            supervisor.force_stop(run.name)
