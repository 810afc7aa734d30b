"""How a run is started, beside what its config.yaml says: devices, command line, environment."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from pipelines.strict import Strict
from studio.runs.devices import visible_gpus
from studio.runs.files import CONFIG
from studio.runs.slurm import Allocation, sbatch_command


class Launch(Strict):
    """The contents of launch.json."""

    devices: tuple[str, ...]  # of this machine; none for a run in Slurm
    slurm: Allocation | None = None
    command: tuple[str, ...]
    environment: dict[str, str] = {}  # on top of the studio's own
    after: str | None = None  # the run that has to be finished first

    def shell(self) -> str:
        """Environment and command as a line for a shell."""
        variables = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        return " ".join([*variables, shlex.join(self.command)])


Devices = Sequence[str] | Allocation  # names of devices of this machine, or what to ask of Slurm


def num_ranks(devices: Devices) -> int:
    """Training processes in all."""
    return devices.num_ranks if isinstance(devices, Allocation) else len(devices)


def build_launch(run_dir: Path, devices: Devices, after: str | None = None) -> Launch:
    """How to start a run: one rank for each device; `cpu` may be named several times.

    Writes nothing. ValueError where the devices cannot be used together or are not here.
    """
    if isinstance(devices, Allocation):
        command = sbatch_command(run_dir, devices)
        environment = {"PYTHONUNBUFFERED": "1"}
        return Launch(
            devices=(), slurm=devices, command=command, environment=environment, after=after
        )
    launcher = [sys.executable]
    if len(devices) > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone"]
        launcher += ["--nproc-per-node", str(len(devices))]
    command = (*launcher, "-m", "trainers", str(run_dir / CONFIG), "--run-dir", str(run_dir))
    return Launch(
        devices=tuple(devices),
        command=command,
        environment={"CUDA_VISIBLE_DEVICES": _cuda_names(devices), "PYTHONUNBUFFERED": "1"},
        after=after,
    )


def _cuda_names(devices: Sequence[str]) -> str:
    """CUDA_VISIBLE_DEVICES for a run: as this process may itself see only some of the GPUs."""
    if set(devices) == {"cpu"}:
        return ""
    known = {f"cuda:{index}": name for index, name in enumerate(visible_gpus())}
    strange = next((device for device in devices if device not in known), None)
    if not devices or strange is not None or len(set(devices)) < len(devices):
        raise ValueError(
            f"devices: {', '.join(devices) or 'none'} cannot be used; choose cpu, or different "
            f"ones of: {', '.join(known) or 'no GPU is here'}"
        )
    return ",".join(known[device] for device in devices)
