"""A real Slurm of two nodes on this machine: munged, slurmctld and two slurmd, for tests.

By hand, to look at it in the studio:

    python -m tests.studio.slurm_cluster FOLDER     # then: SLURM_CONF=FOLDER/slurm.conf make studio
"""

import getpass
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol", "srun")
SBIN = "/usr/sbin:/sbin"  # not in every PATH
START_SEC = 120.0
HOST = socket.gethostname().partition(".")[0]
NODES = (HOST, "localhost")  # both can be found, which torchrun needs
# No cgroups and no accounting, neither of which a container gives; nodes claim what they have not.
CONFIG = """
ClusterName=studio-tests
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock,cred_expire=5
SlurmctldPort={ports[0]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0
KillWait=5
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
NODE = (
    "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=64 RealMemory=4000\n"
)


@contextmanager
def slurm_cluster(folder: Path) -> Iterator[dict[str, str]]:
    """Yields the environment in which sbatch and the others find it; ends it afterwards.

    RuntimeError with the reason where it cannot start.
    """
    path = f"{os.environ['PATH']}:{SBIN}"
    missing = [name for name in PROGRAMS if shutil.which(name, path=path) is None]
    if missing:
        raise RuntimeError(f"no Slurm here ({', '.join(missing)}): apt install slurm-wlm munge")
    config = write_config(folder)
    environment = {"PATH": path, "SLURM_CONF": str(config)}
    munge = [
        f"--{name}={folder}/munge.{name.partition('-')[0]}" for name in ("pid-file", "log-file")
    ]
    munge += [f"--key-file={folder}/munge.key", f"--socket={folder}/munge.sock"]
    # --force: it does not like that pytest's folders are closed to others
    munge += [f"--seed-file={folder}/munge.seed", "--foreground", "--force"]
    daemons = [("munged", *munge), ("slurmctld", "-D"), *(("slurmd", "-D", "-N", n) for n in NODES)]
    running = []
    try:
        for name, *arguments in daemons:
            with (folder / "daemons.log").open("ab") as log:
                command = [shutil.which(name, path=path) or name, *arguments]
                running.append(
                    subprocess.Popen(command, env=os.environ | environment, stdout=log, stderr=log)
                )
        wait_until_idle(os.environ | environment, folder)
        yield environment
        subprocess.run(["scancel", "--signal=KILL", "--full", "--me"], env=os.environ | environment)
        subprocess.run(["scancel", "--me"], env=os.environ | environment)
        wait_until_idle(os.environ | environment, folder)
    finally:
        for daemon in reversed(running):  # munged last: the others talk through it
            daemon.terminate()
            daemon.wait()


def write_config(folder: Path) -> Path:
    """slurm.conf, the key that all daemons share, and the folders they want."""
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o600)
    for name in ("state", *(f"spool-{node}" for node in NODES)):
        (folder / name).mkdir()
    ports = free_ports(1 + len(NODES))
    text = CONFIG.format(host=HOST, user=getpass.getuser(), folder=folder, ports=ports)
    for name, port in zip(NODES, ports[1:], strict=True):
        text += NODE.format(name=name, host=HOST, port=port)
    config = folder / "slurm.conf"
    config.write_text(text)
    return config


def free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def wait_until_idle(environment: dict[str, str], folder: Path) -> None:
    """RuntimeError where not all nodes are there in time."""
    deadline = time.monotonic() + START_SEC
    while time.monotonic() < deadline:
        command = ["sinfo", "--noheader", "--Node", "--format=%T"]
        told = subprocess.run(command, env=environment, capture_output=True, text=True)
        if told.stdout.split() == ["idle"] * len(NODES):
            return
        time.sleep(0.1)
    last = (folder / "daemons.log").read_text().splitlines()[-3:]
    raise RuntimeError(f"Slurm does not start here: {told.stdout.strip()} {' '.join(last)}")


if __name__ == "__main__":
    place = Path(sys.argv[1]).resolve()
    place.mkdir()
    with slurm_cluster(place) as found:
        print("SLURM_CONF=" + found["SLURM_CONF"], flush=True)
        with suppress(KeyboardInterrupt):
            time.sleep(1e9)
