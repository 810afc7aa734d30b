"""python -m pipelines download NAME [--models DIR]: fetches the model of a preset.

The studio's button runs the same command. Exit codes as in `pipelines`; Ctrl-C or SIGTERM ends with
130, and what has been downloaded is kept for the next time.
"""

import argparse
import signal
import sys
import time
from typing import Any

from pipelines.catalog.downloads import DownloadState, find_download
from pipelines.catalog.registry import Registry

SAY_SEC = 2.0
GB = 1e9


def add_download_command(commands: Any, folders: argparse.ArgumentParser) -> None:
    """Adds the command to those of `python -m pipelines`."""
    parser = commands.add_parser("download", parents=[folders], help="fetch a published model")
    parser.set_defaults(run=run)
    parser.add_argument("name", help="a name from `models`")


def run(options: argparse.Namespace) -> None:
    """Downloads and says how far it is."""
    found = find_download(Registry(options.models), options.name)
    from pipelines.catalog.hub import download  # imports the hub's library, which takes a second

    print(f"{found.preset.source} ({found.preset.license}) to {found.target}", file=sys.stderr)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    said_sec = 0.0

    def report(state: DownloadState) -> None:
        nonlocal said_sec
        if state.total_bytes and time.monotonic() - said_sec > SAY_SEC:
            said_sec = time.monotonic()
            print(_line(state), file=sys.stderr, flush=True)

    try:
        download(found.preset.source, found.preset.files, found.target, found.work, report)
    except KeyboardInterrupt:
        print("stopped; what has been downloaded is kept", file=sys.stderr)
        raise SystemExit(130) from None
    print(found.target)


def _line(state: DownloadState) -> str:
    eta = "" if state.eta_sec is None else f", ETA {state.eta_sec:.0f} s"
    return f"{state.done_bytes / GB:.2f} of {state.total_bytes / GB:.2f} GB{eta}"
