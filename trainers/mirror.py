"""Copies a run's figures to TensorBoard or trackio, and follows the run while it goes on.

    python -m trainers.mirror runs/tiny-dmd4 --to tensorboard     # then: tensorboard --logdir runs
    python -m trainers.mirror runs/tiny-dmd4 --to trackio         # then: trackio show

Training itself writes metrics.jsonl alone, which no missing package and no broken tracker can stop.
Exit codes: 0 done, 2 bad input, 130 ended with Ctrl-C.
"""

import argparse
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

PACKAGES = ("tensorboard", "trackio")
LOOK_SEC = 2.0
LAST_EVENTS = ("finished", "stopped", "failed")
Log = Callable[[int, dict[str, float]], None]


def installed() -> list[str]:
    """The packages that are here."""
    return [name for name in PACKAGES if importlib.util.find_spec(name)]


def mirror(run_dir: Path, log: Log) -> None:
    """Hands every line of figures to `log`, until the run has ended and all are read."""
    for line in _lines(run_dir):
        figures = {k: v for k, v in line.items() if k not in ("step", "time")}
        log(int(line["step"]), figures)


def _lines(run_dir: Path) -> Iterator[dict[str, float]]:
    path = run_dir / "metrics.jsonl"
    file = path.open("rb")
    try:
        while True:
            ended = _has_ended(run_dir)  # asked first: what was written before the end is read
            if not os.path.samestat(os.fstat(file.fileno()), path.stat()):
                file.close()  # a resumed run dropped figures past its checkpoint: all again
                file = path.open("rb")
            while (text := file.readline()).endswith(b"\n"):
                yield json.loads(text)
            if ended:
                return
            file.seek(-len(text), os.SEEK_CUR)  # a line that is only half there
            time.sleep(LOOK_SEC)
    finally:
        file.close()


def _has_ended(run_dir: Path) -> bool:
    """Whether the last event of the run, from a shell or from the studio, is its end."""
    events = run_dir / "events.jsonl"
    lines = events.read_text(encoding="utf-8").splitlines() if events.is_file() else []
    return bool(lines) and json.loads(lines[-1])["event"] in LAST_EVENTS


def _open_log(package: str, run_dir: Path) -> Log:
    if package == "trackio":
        import trackio

        trackio.init(
            project="wan-distillation-studio",
            name=run_dir.name,
            auto_log_cpu=False,  # it would be this process's load, not the run's
            auto_log_gpu=False,
        )
        return lambda step, figures: trackio.log(figures, step=step)
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(run_dir / "tensorboard"))

    def log(step: int, figures: dict[str, float]) -> None:
        for name, figure in figures.items():
            writer.add_scalar(name, figure, step)
        writer.flush()

    return log


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m trainers.mirror")
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--to", required=True, choices=PACKAGES)
    options = parser.parse_args(arguments)
    try:
        if options.to not in installed():
            raise ValueError(f"to: {options.to} is not installed; run `pip install {options.to}`")
        if not (options.run_dir / "metrics.jsonl").is_file():
            raise ValueError(
                f"run_dir: {options.run_dir} has no metrics.jsonl; name a run's folder"
            )
        mirror(options.run_dir, _open_log(options.to, options.run_dir))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
