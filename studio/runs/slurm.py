"""Runs as Slurm jobs: what to ask for, hand a run over, follow it, cancel it.

A job's script is a copy of one in presets/cluster/ that lies in the run's folder: it saves and
queues the job again before its time is up. What Slurm said last is in the run's job.json, so that
the page reads files only: `number`, `time` of submission, `waits`, and a `note` in words.
"""

import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from pipelines.catalog.registry import PRESETS
from pipelines.strict import Strict
from studio.runs.files import CONFIG, EVENTS, LOG, ROOT, STOPPING, last_error, read_json, read_jsonl
from studio.runs.status import NOT_SAVED, Status

SCRIPT = "job.sbatch"
TEMPLATES = PRESETS / "cluster"
ANSWER_SEC = 30.0  # for Slurm's controller; its own commands give up after as long
WAITS = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT")
ENDED: Mapping[str, str] = {  # Slurm's words, and ours where its log says nothing
    "COMPLETED": "",
    "CANCELLED": "It was cancelled in Slurm.",
    "FAILED": "It failed and said nothing.",
    "TIMEOUT": "Its time in Slurm was up before it could save.",
    "OUT_OF_MEMORY": "It needed more memory than Slurm gave it.",
    "NODE_FAIL": "Slurm lost one of its nodes.",
    "BOOT_FAIL": "Slurm could not boot one of its nodes.",
    "DEADLINE": "It was ended at its deadline in Slurm.",
    "PREEMPTED": "Another Slurm job took its place.",
    "REVOKED": "Slurm gave it to another cluster.",
}


class Allocation(Strict):
    """What a run asks of Slurm; everything else is in the script, for each cluster to change."""

    nodes: int = Field(1, ge=1, description="Machines.")
    gpus_per_node: int = Field(8, ge=0, description="One process each; 0 trains on the CPU.")
    time_limit: str = Field("24:00:00", description="Then it saves and queues again.")
    partition: str = Field("", description="Empty: the cluster's default.")
    account: str = Field("", description="Empty: your default.")

    @field_validator("time_limit")
    @classmethod
    def _is_time(cls, text: str) -> str:
        if not re.fullmatch(r"(\d+-)?\d+:\d\d:\d\d", text):
            raise ValueError("write it as HH:MM:SS or D-HH:MM:SS")
        return text

    @field_validator("partition", "account")
    @classmethod
    def _is_name(cls, text: str) -> str:
        if not re.fullmatch(r"[\w.,@+-]*", text):
            raise ValueError("use letters, digits and . , _ @ + - only")
        return text

    @property
    def num_ranks(self) -> int:
        """Training processes in all."""
        return self.nodes * max(1, self.gpus_per_node)

    def __str__(self) -> str:
        nodes = "1 node" if self.nodes == 1 else f"{self.nodes} nodes"
        gpus = f"{self.gpus_per_node} GPU{'s' if self.gpus_per_node > 1 else ''}"
        return f"Slurm, {nodes}" + (f" with {gpus}" if self.gpus_per_node else "")


@dataclass(frozen=True)
class SlurmJob:
    """What Slurm says: its state, and why it is in that state."""

    state: str
    why: str


def is_here() -> bool:
    """Whether this machine can hand jobs to a Slurm."""
    return shutil.which("sbatch") is not None


def sbatch_command(run_dir: Path, asked: Allocation) -> tuple[str, ...]:
    """The command line that submits a run; options go before what the script says."""
    options = {
        "job-name": run_dir.name,
        "chdir": ROOT,
        "output": run_dir / LOG,
        "nodes": asked.nodes,
        "gpus-per-node": asked.gpus_per_node,
        "time": asked.time_limit,
        "partition": asked.partition,
        "account": asked.account,
    }
    given = (f"--{name}={value}" for name, value in options.items() if value != "")
    script = (str(run_dir / SCRIPT), str(run_dir), str(run_dir / CONFIG))
    return ("sbatch", "--parsable", *given, *script)


def write_script(run_dir: Path, asked: Allocation) -> None:
    """Puts the script that fits into the run's folder."""
    name = "one-node" if asked.nodes == 1 else "many-nodes"
    shutil.copy(TEMPLATES / f"{name}.sbatch", run_dir / SCRIPT)


def submit(run_dir: Path, command: Sequence[str], environment: Mapping[str, str]) -> str:
    """The number of the run's job: of one that lives already, else of a new one.

    A studio that died after it submitted a job left no number. ValueError in Slurm's words.
    """
    script = str(run_dir / SCRIPT)
    for number, job, started_with in _squeue("--me"):
        if started_with.split(" ")[0] == script and job.state not in ENDED:
            return number
    return _ask(command, environment).split(";")[0].strip()


def cancel(number: str, only_if_waiting: bool = False) -> None:
    """Ends a job: SIGTERM, and SIGKILL some 30 s later. ValueError in Slurm's words."""
    _ask(["scancel", *(["--state=PENDING"] if only_if_waiting else []), number])


def ask(numbers: Sequence[str]) -> dict[str, SlurmJob | None]:
    """What Slurm says about jobs; None for those that it has forgotten. ValueError in its words."""
    found = {number: job for number, job, _ in _squeue("--me", "--states=all")}
    rest = [number for number in numbers if number not in found]
    return {number: found.get(number) for number in numbers} | _accounting(rest)


def outcome(run_dir: Path, record: Mapping[str, Any], job: SlurmJob | None) -> Status | None:
    """How a job ended, None while it has not. `record` is the run's job.json."""
    if job is not None and job.state not in ENDED:
        return None
    events = [e for e in read_jsonl(run_dir / EVENTS) if e.get("time", 0) >= record["time"]]
    last = events[-1].get("event") if events else None
    if last == "finished" or last == "stopped":
        return Status(last, "", None)
    if job is None:
        reason = f"Slurm no longer knows its job {record['number']}; resume continues"
        return Status("lost", f"{reason} from its newest checkpoint.", None)
    if job.state == "COMPLETED":
        return Status("finished", "", None)
    if job.state == "CANCELLED":
        asked = read_json(run_dir / STOPPING) is not None
        return Status("stopped", NOT_SAVED if asked else f"{ENDED[job.state]} {NOT_SAVED}", None)
    said = last_error(run_dir / LOG, record["log_offset"]) if job.state == "FAILED" else ""
    return Status("failed", said or ENDED[job.state], None)


def note(number: str, job: SlurmJob) -> str:
    """What a user should know about a job that has not ended."""
    return f"Slurm job {number} waits: {job.why}." if job.state in WAITS else ""


def _squeue(*options: str) -> list[tuple[str, SlurmJob, str]]:
    """Number, state and command of jobs."""
    lines = _ask(["squeue", "--noheader", "--format=%i|%T|%r|%o", *options]).splitlines()
    rows = (line.strip().split("|", 3) for line in lines)
    return [(number, SlurmJob(state, why), command) for number, state, why, command in rows]


def _accounting(numbers: Sequence[str]) -> dict[str, SlurmJob | None]:
    """Of jobs that squeue has forgotten, minutes after their end; many clusters keep accounts."""
    if not numbers:
        return {}
    command = ["sacct", "--allocations", "--noheader", "--parsable2", "--format=JobID,State"]
    try:
        lines = _ask([*command, f"--jobs={','.join(numbers)}"]).splitlines()
    except ValueError:  # this one keeps none
        return {}
    rows = (line.split("|") for line in lines)
    return {
        number: SlurmJob(state.split(" ")[0], "") for number, state in rows
    }  # CANCELLED by 1000


def _ask(command: Sequence[str], environment: Mapping[str, str] | None = None) -> str:
    """The output of one of Slurm's commands. ValueError in its words."""
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=ANSWER_SEC,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ValueError(f"Slurm does not answer ({error})") from error
    if done.returncode:
        said = (done.stderr.strip().splitlines() or [f"code {done.returncode}"])[-1]
        raise ValueError(f"Slurm refuses: {said.removeprefix(f'{command[0]}: error: ')}")
    return done.stdout
