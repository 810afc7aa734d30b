"""Downloads from a hub in this process, which breaks and refuses on demand."""

import os
import random
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import huggingface_hub.constants
import huggingface_hub.file_download
import pytest

from pipelines.catalog.downloads import FOLDER, DownloadState, is_running, only_one, read_state
from pipelines.catalog.hub import download
from tests.conftest import wait_for
from tests.pipelines.hub import Hub, repository, serve

TINY_WAN = Path("assets/tiny-wan")
SOURCE = "some-org/small-wan"
WEIGHTS = random.Random(0).randbytes(6 * 2**20)
FILES = {
    "model_index.json": b"{}",
    "transformer/model.safetensors": WEIGHTS,
    "README.md": b"# nothing that a model needs",
}
PATTERNS = ("*.json", "transformer/*")


def use_hub(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """What HF_ENDPOINT does where it is set before the library is imported."""
    constants = huggingface_hub.constants
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", url)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serve({SOURCE: dict(FILES)}) as hub:
        use_hub(monkeypatch, hub.url)
        # Smaller pieces than the library's 10 MB, and no pause before it tries again.
        monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 2**20)
        monkeypatch.setattr(huggingface_hub.file_download.time, "sleep", lambda _: None)
        yield hub


@pytest.fixture
def work(tmp_path: Path) -> Path:
    return tmp_path / FOLDER / "small-wan"


def bring(tmp_path: Path, work: Path) -> list[DownloadState]:
    """Downloads; returns what was reported."""
    states: list[DownloadState] = []
    download(SOURCE, PATTERNS, tmp_path / "small-wan", work, states.append)
    return states


def test_only_the_files_that_match_arrive_and_the_state_says_finished(
    hub: Hub, tmp_path: Path, work: Path
) -> None:
    states = bring(tmp_path, work)
    target = tmp_path / "small-wan"
    assert (target / "transformer" / "model.safetensors").read_bytes() == WEIGHTS
    found = {path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file()}
    assert found == {"model_index.json", "transformer/model.safetensors"}
    assert states[-1] == read_state(work)
    assert states[-1].state == "finished"
    assert states[-1].done_bytes == states[-1].total_bytes == len(WEIGHTS) + 2
    assert not is_running(work)


def test_a_broken_connection_goes_on_where_it_broke(hub: Hub, tmp_path: Path, work: Path) -> None:
    hub.breaks = [2**21 + 5, 2**20 + 5]
    bring(tmp_path, work)
    firsts = [first for path, first in hub.ranges if path.endswith("safetensors")]
    assert firsts == [0, 2 * 2**20, 3 * 2**20]  # what is received is written by the MiB
    assert (tmp_path / "small-wan/transformer/model.safetensors").read_bytes() == WEIGHTS


def test_another_process_goes_on_where_a_dead_connection_left_it(
    hub: Hub, tmp_path: Path, work: Path
) -> None:
    hub.breaks = [2**20 + 5, *[0] * 50]
    with pytest.raises(ValueError, match=r"cannot be reached .* what has been downloaded is kept"):
        bring(tmp_path, work)
    state = read_state(work)
    assert state is not None
    assert state.state == "failed"
    assert "what has been downloaded is kept" in state.error
    assert not (tmp_path / "small-wan/transformer/model.safetensors").exists()
    hub.breaks, hub.ranges = [], []
    bring(tmp_path, work)
    (first,) = [first for path, first in hub.ranges if path.endswith("safetensors")]
    assert first == 2**20
    assert (tmp_path / "small-wan/transformer/model.safetensors").read_bytes() == WEIGHTS


def test_what_is_there_is_not_downloaded_again(hub: Hub, tmp_path: Path, work: Path) -> None:
    bring(tmp_path, work)
    hub.ranges = []
    bring(tmp_path, work)
    assert hub.ranges == []


def test_a_file_that_arrives_damaged_never_gets_its_name(
    hub: Hub, tmp_path: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.pipelines.hub.digest", lambda content: 64 * "0")
    with pytest.raises(ValueError, match=r"^transformer/model.safetensors arrived damaged"):
        bring(tmp_path, work)
    assert not (tmp_path / "small-wan/transformer").exists()
    assert not (work / (64 * "0")).exists()


def test_too_small_a_disk_is_refused_before_anything_is_written(
    hub: Hub, tmp_path: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1_000_000))
    with pytest.raises(ValueError, match=r"has 0\.0 GB free but the download needs 0\.0 GB"):
        bring(tmp_path, work)
    assert hub.ranges == []


@contextmanager
def no_room(num_bytes: int) -> Iterator[None]:
    """No file may grow beyond this, which fails in the same places as a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_fills_up_says_so_and_the_next_download_goes_on(
    hub: Hub, tmp_path: Path, work: Path
) -> None:
    with no_room(3 * 2**20), pytest.raises(ValueError, match=r"^the disk of .* is full; free some"):
        bring(tmp_path, work)
    hub.ranges = []
    bring(tmp_path, work)
    (first,) = [first for path, first in hub.ranges if path.endswith("safetensors")]
    assert first == 3 * 2**20
    assert (tmp_path / "small-wan/transformer/model.safetensors").read_bytes() == WEIGHTS


@pytest.mark.parametrize(
    ("break_it", "sentence"),
    [
        (lambda hub: hub.repositories.clear(), "has no repository some-org/small-wan"),
        (lambda hub: setattr(hub, "gated", True), "only for those who accept its terms"),
        (
            lambda hub: hub.repositories.update({SOURCE: {"README.md": b""}}),
            r"has none of \*\.json, transformer/\*; correct `files`",
        ),
        (
            lambda hub: hub.repositories[SOURCE].update({"transformer/../../../evil.json": b"{}"}),
            "holds a file named",
        ),
        (
            lambda hub: hub.lies.update({"transformer/model.safetensors": "../../../evil.json"}),
            "gives transformer/model.safetensors the hash",
        ),
    ],
)
def test_what_a_hub_refuses_is_one_sentence(
    hub: Hub, tmp_path: Path, work: Path, break_it, sentence: str
) -> None:
    break_it(hub)
    with pytest.raises(ValueError, match=sentence):
        bring(tmp_path, work)
    assert not (tmp_path / "evil.json").exists()
    state = read_state(work)
    assert state is not None
    assert state.state == "failed"


def test_a_hub_that_is_not_there_is_one_sentence(
    tmp_path: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_hub(monkeypatch, "http://127.0.0.1:9")
    with pytest.raises(ValueError, match=r"^http://127.0.0.1:9 cannot be reached .*HF_ENDPOINT"):
        bring(tmp_path, work)


def test_a_second_download_of_the_same_is_refused(hub: Hub, tmp_path: Path, work: Path) -> None:
    with only_one(work):
        code = "import sys; from pathlib import Path\n"
        code += "from pipelines.catalog.downloads import only_one\n"
        code += "with only_one(Path(sys.argv[1])): pass"
        command = [sys.executable, "-c", code, str(work)]
        done = subprocess.run(command, capture_output=True, text=True)
    assert "small-wan is being downloaded already; wait for it" in done.stderr


def test_the_command_honours_the_endpoint_and_goes_on_after_a_kill(
    tmp_path: Path,
) -> None:
    source, name = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "wan2.1-t2v-1.3b"
    files = repository(TINY_WAN)
    weights = "transformer/diffusion_pytorch_model.safetensors"
    files[weights] = random.Random(1).randbytes(24 * 2**20)  # two pieces of 10 MB and a rest
    work = tmp_path / FOLDER / name
    command = [sys.executable, "-m", "pipelines", "download", name, "--models", str(tmp_path)]
    with serve({source: files}) as hub:
        environment = os.environ | {"HF_ENDPOINT": hub.url}

        def start() -> subprocess.Popen[str]:
            return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)

        hub.stall_after = 22 * 2**20
        process = start()
        wait_for(lambda: any(part.stat().st_size == 20 * 2**20 for part in work.glob("?" * 64)))
        assert is_running(work)
        process.kill()
        process.communicate()
        state = read_state(work)
        assert state is not None
        assert state.state == "stopped"
        hub.ranges, hub.stall_after = [], None
        _, said = start().communicate()
        assert hub.ranges == [(weights, 20 * 2**20)]
        assert said.startswith(f"{source} (Apache-2.0) to {tmp_path}")
    found = tmp_path / Path(source).name / weights
    assert found.read_bytes() == files[weights]
