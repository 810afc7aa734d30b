"""A hub in this process: the part of the Hugging Face API that a download speaks.

Model info, the tree with SHA-256 of large files, `resolve` with redirect, ETag and ranges. It can
break connections, refuse, and change a file.
"""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "c0ffee" + 34 * "0"
LARGE_BYTES = 2**20  # the hub keeps such files by their SHA-256


class Hub(ThreadingHTTPServer):
    """`files` by path for each repository; what was asked for is in `ranges`, oldest first."""

    daemon_threads = True

    def __init__(self, repositories: dict[str, dict[str, bytes]]):
        super().__init__(("127.0.0.1", 0), Answer)
        self.repositories = repositories
        self.ranges: list[tuple[str, int]] = []  # path and first byte
        self.breaks: list[int] = []  # bytes after which the next answers with a large file break
        self.stall_after: int | None = None  # bytes of a large file, then nothing until `go_on`
        self.go_on = threading.Event()
        self.gated = False
        self.lies: dict[str, str] = {}  # hashes it gives of files, in place of theirs
        self.url = f"http://127.0.0.1:{self.server_port}"


class Answer(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if match := re.fullmatch(rf"/api/models/([^/]+/[^/]+)/tree/{COMMIT}", path):
            self.files(match[1], lambda files: self.send_json(tree(files, self.server.lies)))
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)", path):
            self.files(match[1], lambda _: self.send_json({"id": match[1], "sha": COMMIT}))
        elif match := re.fullmatch(rf"/([^/]+/[^/]+)/resolve/{COMMIT}/(.+)", path):
            self.files(match[1], lambda _: self.send_head(302, {"Location": f"/cdn{path}"}))
        elif match := re.fullmatch(rf"/cdn/([^/]+/[^/]+)/resolve/{COMMIT}/(.+)", path):
            self.send_file(match[2], self.server.repositories[match[1]][match[2]])
        else:
            self.send_head(404)

    def files(self, repository: str, answer) -> None:
        if self.server.gated:
            self.send_head(403, {"X-Error-Code": "GatedRepo"})
        elif repository not in self.server.repositories:
            self.send_head(404, {"X-Error-Code": "RepoNotFound"})
        else:
            answer(self.server.repositories[repository])

    def send_head(self, status: int, headers: dict[str, str] | None = None, size: int = 0) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(size), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()

    def send_json(self, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_head(200, {"Content-Type": "application/json"}, len(body))
        self.wfile.write(body)

    def send_file(self, path: str, content: bytes) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        first = int(asked[1]) if asked else 0
        self.server.ranges.append((path, first))
        rest = content[first:]
        headers = {"ETag": f'"{digest(content)}"'}
        if asked:
            headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
        self.send_head(206 if asked else 200, headers, len(rest))
        if len(content) >= LARGE_BYTES and self.server.breaks:
            rest = rest[: self.server.breaks.pop(0)]
            self.close_connection = True
        if len(content) >= LARGE_BYTES and self.server.stall_after is not None:
            self.wfile.write(rest[: self.server.stall_after])
            self.server.go_on.wait()
            rest = rest[self.server.stall_after :]
        self.wfile.write(rest)


def digest(content: bytes) -> str:
    """SHA-256 of a large file, git's hash of a small one."""
    if len(content) >= LARGE_BYTES:
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def tree(files: dict[str, bytes], lies: dict[str, str]) -> list[dict[str, object]]:
    entries = []
    for path, content in files.items():
        entry: dict[str, object] = {"type": "file", "path": path, "size": len(content)}
        entry["oid"] = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        if len(content) >= LARGE_BYTES:
            oid = lies.get(path, digest(content))
            entry["lfs"] = {"oid": oid, "size": len(content), "pointerSize": 130}
        entries.append(entry)
    return entries


def repository(folder: Path) -> dict[str, bytes]:
    """The files of a folder by path."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@contextmanager
def serve(repositories: dict[str, dict[str, bytes]]) -> Iterator[Hub]:
    hub = Hub(repositories)
    thread = threading.Thread(target=hub.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.go_on.set()
        hub.shutdown()
        hub.server_close()
