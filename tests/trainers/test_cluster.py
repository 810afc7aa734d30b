"""The Slurm templates, with stand-ins for Slurm and torchrun."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.conftest import HANG_SEC, wait_for

SCRIPTS = sorted(Path("presets/cluster").glob("*.sbatch"))

# One training that ends when it is told to, as the engine does after the step it is in.
TRAINING = """
echo "$@" > torchrun.txt
until [[ -f runs/mine/control/stop ]]; do sleep 0.05; done
rm runs/mine/control/stop
touch saved
exit ${TRAINING_STATUS:-0}
"""
SCONTROL = """
if [[ $1 == show ]]; then printf 'node-1\\nnode-2\\n'; else echo "$@" > scontrol.txt; fi
"""
SRUN = """
shift
exec "$@"
"""


@pytest.fixture
def cluster(tmp_path: Path) -> Path:
    """A working directory whose bin/ comes first in PATH."""
    programs = {".venv/bin/torchrun": TRAINING, "bin/scontrol": SCONTROL, "bin/srun": SRUN}
    for name, body in programs.items():
        program = tmp_path / name
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text(f"#!/bin/bash\n{body}")
        program.chmod(0o755)
    return tmp_path


def run_until_signalled(script: Path, cluster: Path, status: int) -> int:
    """Starts the job, sends it what Slurm sends before the end of its time; its exit code."""
    slurm = {"SLURM_JOB_ID": "7", "SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "node-[1-2]"}
    path = {"PATH": f"{cluster / 'bin'}:{os.environ['PATH']}", "TRAINING_STATUS": str(status)}
    arguments = ["bash", str(script.resolve()), "runs/mine", "some.yaml", "num_steps=5"]
    job = subprocess.Popen(arguments, cwd=cluster, env=os.environ | slurm | path)
    wait_for((cluster / "torchrun.txt").is_file)
    job.send_signal(signal.SIGUSR1)
    return job.wait(timeout=HANG_SEC)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_job_near_the_end_of_its_time_saves_and_queues_again(script: Path, cluster: Path) -> None:
    assert run_until_signalled(script, cluster, status=0) == 0
    assert (cluster / "saved").is_file()
    assert (cluster / "scontrol.txt").read_text().split() == ["requeue", "7"]
    arguments = (cluster / "torchrun.txt").read_text()
    assert "-m trainers some.yaml num_steps=5 --run-dir runs/mine" in arguments
    if script.stem == "many-nodes":
        assert "--nnodes 2" in arguments
        assert "--rdzv-backend c10d --rdzv-endpoint node-1:20007 --rdzv-id 7-0" in arguments


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_job_that_failed_does_not_queue_again(script: Path, cluster: Path) -> None:
    assert run_until_signalled(script, cluster, status=3) == 3
    assert not (cluster / "scontrol.txt").is_file()


def test_both_templates_are_there() -> None:
    assert [script.stem for script in SCRIPTS] == ["many-nodes", "one-node"]
