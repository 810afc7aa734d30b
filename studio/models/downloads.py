"""Starts and stops downloads, each a process of its own: the command that one types in a shell.

It goes on when the page or the studio is closed. What is known about it lies in its folder
(`pipelines.catalog.downloads`), so the next studio, and one beside it, see it too.
"""

import os
import subprocess
import sys

from pipelines.catalog.downloads import (
    Download,
    DownloadState,
    cancel,
    find_download,
    is_running,
    read_state,
)
from pipelines.catalog.registry import Registry
from studio.runs.files import LOG, ROOT, last_error


class Downloads:
    """The downloads into the first models folder of a registry."""

    def __init__(self, registry: Registry):
        self.registry = registry
        self._started: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str) -> None:
        """ValueError where there is no such model to download, or it is being downloaded."""
        found = find_download(self.registry, name)
        state = self.state(found)
        if state is not None and state.state == "running":
            raise ValueError(f"{name} is being downloaded already; wait for it")
        found.work.mkdir(parents=True, exist_ok=True)
        (found.work / "state.json").unlink(missing_ok=True)
        models_dir = str(self.registry.download_dir)
        command = [sys.executable, "-m", "pipelines", "download", name, "--models", models_dir]
        with (found.work / LOG).open("wb") as log:
            self._started[name] = subprocess.Popen(
                command,
                cwd=ROOT,
                env=os.environ | {"PYTHONUNBUFFERED": "1"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def stop(self, name: str) -> None:
        """What has been downloaded is kept."""
        cancel(find_download(self.registry, name).work)

    def state(self, found: Download) -> DownloadState | None:
        """None where nothing was ever downloaded."""
        state = read_state(found.work)
        process = self._started.get(found.preset.name)
        if state is not None or process is None:
            return state
        if process.poll() is None or is_running(found.work):  # it is only just beginning
            return DownloadState(state="running", pid=process.pid)
        error = last_error(found.work / LOG) or f"It ended with code {process.returncode}."
        return DownloadState(state="failed", pid=process.pid, error=error)
