"""Downloads a published model from the Hugging Face Hub; only ever when a user asks for it.

Listing, requests and retries are huggingface_hub's, so HF_ENDPOINT, HF_TOKEN and proxies count as
they do there. Its own download of a file throws away what an ended process left; here an unfinished
file is kept under the hash of its content and goes on where it stopped. A file gets its name only
after its hash was checked. Files come by plain HTTP, which mirrors speak too, not through Xet.
"""

import errno
import hashlib
import io
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import httpx2
from huggingface_hub import HfApi, RepoFile, constants, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import build_hf_headers, disable_progress_bars, filter_repo_objects
from huggingface_hub.utils import logging as hub_logging

from pipelines.catalog.downloads import DownloadState, StateName, only_one, write_state

READ_BYTES = 2**22
REPORT_SEC = 0.5
ASK_SEC = 30
GB = 1e9

Report = Callable[[DownloadState], None]


@dataclass(frozen=True)
class Published:
    """A file of a repository; `digest` is its SHA-256, or git's SHA-1 where it is a small text."""

    path: str
    num_bytes: int
    digest: str


class Meter:
    """Bytes there, bytes in all, and the time left at the pace of this download."""

    def __init__(self, report: Report):
        self.report = report
        self.total_bytes = 0
        self.whole_bytes = 0  # in files that are whole
        self._done_bytes = 0
        self._first: tuple[float, int] | None = (
            None  # when the first bytes came, and what was there
        )
        self._told_sec = 0.0

    def begin(self, total_bytes: int, whole_bytes: int) -> None:
        self.total_bytes, self.whole_bytes = total_bytes, whole_bytes

    def tell(self, part_bytes: int) -> None:
        """`part_bytes` of the current file are there."""
        self._done_bytes, now = self.whole_bytes + part_bytes, time.monotonic()
        self._first = self._first or (now, self._done_bytes)
        if now - self._told_sec < REPORT_SEC:
            return
        self._told_sec = now
        started_sec, there = self._first
        pace = (self._done_bytes - there) / max(now - started_sec, 1e-3)
        eta_sec = (self.total_bytes - self._done_bytes) / pace if pace > 0 else None
        self.say("running", eta_sec=eta_sec)

    def say(self, state: StateName, error: str = "", eta_sec: float | None = None) -> None:
        self.report(
            DownloadState(
                state=state,
                pid=os.getpid(),
                done_bytes=self._done_bytes,
                total_bytes=self.total_bytes,
                eta_sec=eta_sec,
                error=error,
            )
        )


class _Part(io.BufferedWriter):
    """An unfinished file, written at its end, that says how long it has become."""

    def __init__(self, path: Path, tell: Callable[[int], None]):
        super().__init__(io.FileIO(path, "ab"))
        self._tell = tell

    def write(self, data: bytes) -> int:  # type: ignore[override]
        written = super().write(data)
        self._tell(self.tell())
        return written


def download(
    source: str, patterns: Sequence[str], target: Path, work: Path, report: Report
) -> None:
    """Brings the files of `source` (ORG/NAME) that match `patterns`, or all, into `target`.

    `work` keeps unfinished files and the state, which `report` gets as well.
    ValueError in one sentence for what fails; another call goes on from there.
    """
    disable_progress_bars()
    hub_logging.set_verbosity_error()  # of retries, which end well or in an error

    def tell(state: DownloadState) -> None:
        write_state(work, state)
        report(state)

    with only_one(work):
        meter = Meter(tell)
        meter.say("running")
        try:
            with _explained(source, work):
                _bring(source, patterns, target, work, meter)
        except ValueError as error:
            meter.say("failed", str(error))
            raise
        except KeyboardInterrupt:
            meter.say("stopped")
            raise
        meter.say("finished")


def _bring(source: str, patterns: Sequence[str], target: Path, work: Path, meter: Meter) -> None:
    commit, files = list_files(source, patterns)
    missing = [file for file in files if not _is_there(target / file.path, file)]
    total = sum(file.num_bytes for file in files)
    meter.begin(total, total - sum(file.num_bytes for file in missing))
    parts = sum(_size(work / file.digest) for file in missing)
    _check_space(target, sum(file.num_bytes for file in missing) - parts)
    for file in missing:
        url = hf_hub_url(source, file.path, revision=commit)
        _bring_file(url, file, target / file.path, work / file.digest, meter)
        meter.whole_bytes += file.num_bytes
    meter.tell(0)


def list_files(source: str, patterns: Sequence[str]) -> tuple[str, list[Published]]:
    """The newest commit of a repository, and its files that match, small ones first.

    ValueError where nothing matches, or a name or a hash, which names a file here, leads elsewhere.
    """
    api = HfApi()
    commit = api.model_info(source, timeout=ASK_SEC).sha
    tree = api.list_repo_tree(source, recursive=True, revision=commit)
    entries = [entry for entry in tree if isinstance(entry, RepoFile)]
    chosen = filter_repo_objects(
        entries, allow_patterns=list(patterns) or None, key=lambda e: e.path
    )
    files = [
        Published(entry.path, entry.size, entry.lfs.sha256 if entry.lfs else entry.blob_id)
        for entry in chosen
    ]
    if not files:
        raise ValueError(
            f"{source} has none of {', '.join(patterns)}; correct `files` in its preset"
        )
    for file in files:
        if Path(file.path).is_absolute() or ".." in Path(file.path).parts:
            raise ValueError(f"{source} holds a file named {file.path!r}; do not use it")
        if not re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", file.digest):
            raise ValueError(f"{source} gives {file.path} the hash {file.digest!r}; do not use it")
    return str(commit), sorted(files, key=lambda file: file.num_bytes)


def _bring_file(url: str, file: Published, path: Path, part: Path, meter: Meter) -> None:
    """Goes on with the unfinished file `part`, then gives it its name."""
    if _size(part) > file.num_bytes:
        part.unlink()
    with _Part(part, meter.tell) as output:
        meter.tell(output.tell())
        http_get(
            url,
            cast(BinaryIO, output),
            resume_size=output.tell(),
            headers=build_hf_headers(),
            expected_size=file.num_bytes,
        )
    if _digest(part, file) != file.digest:
        part.unlink()
        raise ValueError(f"{file.path} arrived damaged and was removed; download it again")
    path.parent.mkdir(parents=True, exist_ok=True)
    part.replace(path)


def _digest(path: Path, file: Published) -> str:
    """As the hub reckons it: git's hash has the size in front."""
    digest = hashlib.sha256() if len(file.digest) == 64 else hashlib.sha1()
    if len(file.digest) == 40:
        digest.update(f"blob {file.num_bytes}\0".encode())
    with path.open("rb") as content:
        while block := content.read(READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _is_there(path: Path, file: Published) -> bool:
    """By its size: a file has its name only after its hash was checked."""
    return path.is_file() and path.stat().st_size == file.num_bytes


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _check_space(target: Path, num_bytes: int) -> None:
    target.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(target).free
    if num_bytes > free:
        raise ValueError(
            f"{target} has {free / GB:.1f} GB free but the download needs {num_bytes / GB:.1f} GB; "
            "free some space or choose another folder with --models"
        )


@contextmanager
def _explained(source: str, work: Path) -> Iterator[None]:
    """What can go wrong with a hub or a disk, as a ValueError of one sentence."""
    hub, again = constants.ENDPOINT, "try again, what has been downloaded is kept"
    try:
        yield
    except GatedRepoError as error:
        raise ValueError(
            f"{source} is only for those who accept its terms at {hub}/{source}; do that, then "
            "log in with `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise ValueError(
            f"{hub} has no repository {source} that may be read; correct `source` in its preset, "
            "or log in with `hf auth login` where it is private"
        ) from error
    except OfflineModeIsEnabled as error:
        raise ValueError("HF_HUB_OFFLINE forbids downloads; unset it and try again") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        raise ValueError(f"{hub} answered {status} for {source}; {again}") from error
    except httpx2.HTTPError as error:
        reason = str(error) or type(error).__name__
        raise ValueError(
            f"{hub} cannot be reached ({reason}); check the network, or name a mirror in "
            f"HF_ENDPOINT, and {again}"
        ) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise ValueError(f"the disk of {work} is full; free some space and {again}") from error
        reason = str(error).splitlines()[0]
        raise ValueError(f"{source} cannot be downloaded ({reason}); {again}") from error
