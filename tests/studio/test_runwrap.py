"""The wrapper: it writes down every end, and nothing of a run outlives it."""

import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import yaml

from studio.runs.control import ask_to_stop, start
from studio.runs.files import EXIT, LOG, ROOT, read_json
from studio.runs.launch import build_launch
from studio.runs.status import NOT_SAVED, read_status
from tests.conftest import HANG_SEC, wait_for
from tests.studio.runs import SLEEP, TRAINS, make_command_run, make_run, processes

DEAF = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SLEEP}"
TWO_RANKS = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def ended(folder: Path) -> dict:
    """exit.json once it is there."""
    return wait_for(lambda: read_json(folder / EXIT))


def wrapped(folder: Path) -> subprocess.Popen:
    """Starts the wrapper; returns once the run's command lives."""
    wrapper = start(folder)
    wait_for(lambda: processes(folder) or (folder / EXIT).exists())
    return wrapper


@pytest.mark.parametrize(
    ("code", "state", "reason"),
    [
        ("print('done')", "finished", ""),
        ("1 / 0", "failed", "ZeroDivisionError: division by zero"),
        ("import sys; sys.exit('error: model: there is none')", "failed", "model: there is none"),
        ("import sys; sys.exit(7)", "failed", "It ended with code 7 and said nothing."),
        ("import os; os.kill(os.getpid(), 11)", "failed", "It was ended by SIGSEGV."),
    ],
)
def test_the_end_of_a_run_is_written_down_with_its_reason(
    code: str, state: str, reason: str, tmp_path: Path
) -> None:
    folder = make_run(tmp_path, "run", code)
    (folder / LOG).write_text("ValueError: of an earlier start\n")
    assert start(folder).wait(HANG_SEC) == 0
    assert read_status(folder).state == state
    assert read_status(folder).reason == reason
    assert {path.name for path in folder.iterdir()} == {
        "config.yaml",
        "launch.json",
        "log.txt",
        "pid.json",
        "exit.json",
    }


def test_a_command_that_is_not_there_is_a_reason(tmp_path: Path) -> None:
    folder = make_command_run(tmp_path / "run", ("/no/such; touch $(pwd)/x", "`x`"))
    start(folder).wait(HANG_SEC)
    assert "No such file" in read_status(folder).reason


def test_a_run_has_a_session_of_its_own_no_input_and_a_file_for_its_output(tmp_path: Path) -> None:
    code = "import os, sys; print(repr(sys.stdin.read()), os.getsid(0), os.getpid(), flush=True)"
    folder = make_run(tmp_path, "run", code)
    wrapper = start(folder)
    assert os.getsid(wrapper.pid) == wrapper.pid
    wrapper.wait(HANG_SEC)
    text, session, pid = (folder / LOG).read_text().split()
    assert (text, session) == ("''", pid)


def test_two_wrappers_of_one_start_run_it_once(tmp_path: Path) -> None:
    code = "import pathlib, sys; print('begun', flush=True)"
    folder = make_run(tmp_path, "run", code)
    command = [sys.executable, "-m", "studio.runs.wrapper", str(folder)]
    both = [subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL) for _ in range(2)]
    assert sorted(wrapper.wait(HANG_SEC) for wrapper in both) == [0, 3]
    assert (folder / LOG).read_text() == "begun\n"


@pytest.mark.parametrize("victim", ["torchrun", "rank"])
def test_a_killed_torchrun_or_rank_ends_the_run_and_leaves_no_process(
    victim: str, tmp_path: Path
) -> None:
    command = (sys.executable, *TWO_RANKS, "--no-python", "sleep", "600")
    folder = make_command_run(tmp_path / "run", command)
    wrapper = wrapped(folder)

    def ranks() -> list[psutil.Process]:
        with suppress(psutil.NoSuchProcess):  # torchrun's helpers come and go
            found = [process for process in processes(folder) if process.name() == "sleep"]
            return found if len(found) == 2 else []
        return []

    rank = wait_for(ranks)[0]
    (rank if victim == "rank" else rank.parent()).kill()
    assert ended(folder)["state"] == "failed"
    assert "SIGKILL" in read_status(folder).reason
    assert processes(folder) == []
    assert wrapper.wait(HANG_SEC) == 0


def test_sigterm_to_the_wrapper_reaches_the_training(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "run")
    wrapper = wrapped(folder)
    wrapper.send_signal(signal.SIGTERM)
    assert ended(folder)["reason"] == "It was ended by SIGTERM."
    assert processes(folder) == []


def test_the_stop_file_alone_ends_a_run_that_looks_for_it(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "run", TRAINS)
    wrapped(folder)
    wait_for(lambda: read_status(folder).state == "running")
    ask_to_stop(folder, grace_sec=60)
    assert ended(folder) | {"time": 0} == {"state": "stopped", "reason": "", "code": 0, "time": 0}


@pytest.mark.parametrize(("code", "signal_name"), [(SLEEP, "SIGTERM"), (DEAF, "SIGKILL")])
def test_a_run_that_does_not_listen_is_ended_after_the_grace(
    code: str, signal_name: str, tmp_path: Path
) -> None:
    folder = make_run(tmp_path, "run", f"print('ready', flush=True); {code}")
    wrapper = wrapped(folder)
    wait_for((folder / LOG).read_text)
    wrapper.send_signal(signal.SIGSTOP)  # so that it does not end the run before we look
    ask_to_stop(folder, grace_sec=0.3)
    assert read_status(folder).state == "stopping"
    wrapper.send_signal(signal.SIGCONT)
    ending = ended(folder)
    assert (ending["state"], ending["reason"]) == ("stopped", NOT_SAVED)
    assert ending["code"] == -signal.Signals[signal_name]
    assert processes(folder) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> list[str]:
    """The start of a command line: size of the disk, its folder, and what to run beside it."""
    mount = 'mount -t tmpfs -o size=$0 tmpfs "$1" && shift && exec "$@"'
    inside = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount]
    if not shutil.which("unshare") or subprocess.call([*inside, "1m", str(tmp_path), "true"]):
        pytest.skip("this system lets nobody mount a small disk")
    return inside


def test_a_full_disk_ends_the_run_with_a_reason_and_whole_checkpoints(
    small_disk: list[str], config_tree, tmp_path: Path
) -> None:
    disk, kept = tmp_path / "disk", tmp_path / "kept"
    disk.mkdir()
    tree = config_tree("finetune", num_steps=9, save_every=1, keep_checkpoints=9)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree))
    launch = build_launch(disk / "run", ["cpu"]).model_dump_json()
    (tmp_path / "launch.json").write_text(launch)
    script = 'mkdir "$0/run" && cp "$1"/*.* "$0/run" && "$2" -m studio.runs.wrapper "$0/run"; '
    script += 'cp -r "$0/run" "$3"'  # the disk is gone with its last process
    inside = ["sh", "-c", script, str(disk), str(tmp_path), sys.executable, str(kept)]
    subprocess.run([*small_disk, "3m", str(disk), *inside], cwd=ROOT, check=True)
    status = read_status(kept)
    assert status.state == "failed"
    written = sorted(path.name for path in (kept / "checkpoints").iterdir())
    assert written == ["step_000001", "step_000002", "step_000003"]
    assert "checkpoints: step_000004 could not be written" in status.reason
