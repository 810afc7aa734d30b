"""The work of `python -m trainers prepare`: shard after shard, by one process or by several.

Ranks share the folder and nothing else. The first one shows progress, waits for the shards of the
others and writes what belongs to all.
"""

import hashlib
import json
import math
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import yaml
from filelock import FileLock, Timeout

from pipelines.files.disk import atomic_path
from trainers.data import prepared
from trainers.data.prepared import PreparedSample
from trainers.prepare.encode import Encoder
from trainers.prepare.show import write_previews
from trainers.run.log import Tracker
from trainers.settings.prepare import PrepareConfig
from trainers.sources.listing import Item, kind_of

MAX_PER_SHARD = 64  # samples, which are in memory until the shard is written
MAX_LOST = 1 / 64  # of the items, at a kill
PROBLEMS = "problems.jsonl"
WAIT_SEC = 1.0


EVERY_SEC = 1.0


class Progress:
    """Lines on stderr and in metrics.jsonl, where a step is an item."""

    def __init__(self, tracker: Tracker, num_items: int):
        self.tracker, self.num_items = tracker, num_items
        self.first: tuple[int, float] | None = None  # items and time when it began
        self.shown_at = -EVERY_SEC

    @property
    def is_due(self) -> bool:
        """Whether a second has passed."""
        return time.monotonic() - self.shown_at >= EVERY_SEC

    def show(self, num_done: int) -> None:
        """Tells how many items are done, how fast it goes and how long it will take."""
        now = time.monotonic()
        self.shown_at = now
        self.first = self.first or (num_done, now)
        elapsed_sec = now - self.first[1]
        pace = (num_done - self.first[0]) / elapsed_sec if elapsed_sec else 0.0
        self.tracker.metrics(num_done, {"items_per_sec": pace})
        told = f"prepared {num_done} of {self.num_items}"
        if pace:
            told += f", {pace:.3g} a second, {(self.num_items - num_done) / pace:.0f} s left"
        end = "\r" if sys.stderr.isatty() else "\n"
        print(f"{told}  ", file=sys.stderr, end=end, flush=True)


class StopRequest:
    """SIGTERM, Ctrl-C, or control/stop touched after this process began."""

    def __init__(self, out: Path):
        self.flag, self.began, self.signalled = out / "control" / "stop", time.time(), False
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, self._remember)

    @property
    def was_asked(self) -> bool:
        """Looked at after every item."""
        return self.signalled or (self.flag.exists() and self.flag.stat().st_mtime >= self.began)

    def _remember(self, signum: int, frame: FrameType | None) -> None:
        self.signalled = True


class Preparation:
    """One source on its way into one folder, as one rank sees it."""

    def __init__(
        self, config: PrepareConfig, items: Sequence[Item], encoder: Encoder, out: Path
    ) -> None:
        self.config, self.items, self.encoder, self.out = config, items, encoder, out
        self.rank = int(os.environ.get("RANK", "0"))
        self.num_ranks = int(os.environ.get("WORLD_SIZE", "1"))
        num_together = MAX_PER_SHARD // (config.clips_per_video or 1)
        if kind_of(items) == "parquet":
            num_together = 1  # one file holds many samples
        self.per_shard = max(1, min(num_together, int(len(items) * MAX_LOST)))  # items
        self.num_shards = math.ceil(len(items) / self.per_shard)
        self.stop = StopRequest(out)

    def run(self) -> None:
        """Makes what is missing. Returns early when it is asked to stop."""
        prepared.begin(self.out, self._settings())
        if (self.out / prepared.INDEX).exists():
            print(f"{self.out} is finished already", file=sys.stderr)
            return
        if self.rank > 0:
            self._make_shards(None)
            return
        lock = FileLock(self.out / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise ValueError(f"out: another process is preparing {self.out}") from error
        if not (self.out / "config.yaml").exists():
            config = yaml.safe_dump(self.config.model_dump(mode="json"), sort_keys=False)
            (self.out / "config.yaml").write_text(config)
        tracker = Tracker(self.out)
        tracker.event("started", num_ranks=self.num_ranks, pid=os.getpid())
        progress = Progress(tracker, len(self.items))
        is_whole = self._make_shards(progress) and self._wait_for_others(progress)
        progress.show(self._num_done(None))  # fast work ends within a second of the line before
        if is_whole:
            self._finish()
        tracker.event("finished" if is_whole else "stopped")
        if not is_whole:
            print("stopped; the same command goes on from here", file=sys.stderr)

    def _settings(self) -> dict[str, Any]:
        """What makes these data what they are."""
        listed = json.dumps([[str(item.file), item.caption] for item in self.items])
        return {
            **self.config.identity(),
            **self.encoder.identity(),
            "list of files and captions": hashlib.sha256(listed.encode()).hexdigest()[:16],
        }

    def _make_shards(self, progress: Progress | None) -> bool:
        """This rank's shards. False where it was asked to stop."""
        for number in range(self.rank, self.num_shards, self.num_ranks):
            if not prepared.has_shard(self.out, number) and not self._make_shard(number, progress):
                return False
        return True

    def _make_shard(self, number: int, progress: Progress | None) -> bool:
        samples: list[PreparedSample] = []
        problems: list[dict[str, str]] = []
        first = number * self.per_shard
        for index in range(first, min(first + self.per_shard, len(self.items))):
            if self.stop.was_asked:
                return False
            item = self.items[index]
            found, problem = self.encoder.samples(item)
            samples += found
            if problem:
                problems.append({"file": str(item.file or item.caption), "problem": problem})
            if progress is not None and progress.is_due:
                progress.show(self._num_done(number) + index - first + 1)
        prepared.write_shard(self.out, number, samples, problems)
        return True

    def _num_done(self, current: int | None) -> int:
        """Items in shards that are there, of all ranks, without the one that is being made."""
        there = [n for n in range(self.num_shards) if prepared.shard_path(self.out, n).exists()]
        sizes = [min(self.per_shard, len(self.items) - n * self.per_shard) for n in there]
        return sum(size for n, size in zip(there, sizes, strict=True) if n != current)

    def _wait_for_others(self, progress: Progress) -> bool:
        """False where it was asked to stop."""
        while not all(prepared.has_shard(self.out, n) for n in range(self.num_shards)):
            if self.stop.was_asked:
                return False
            progress.show(self._num_done(None))
            time.sleep(WAIT_SEC)
        return True

    def _finish(self) -> None:
        """The problems, previews and, last, the index. ValueError where there are no samples."""
        num_samples, problems = prepared.summary(self.out, self.num_shards)
        with atomic_path(self.out / PROBLEMS) as partial:
            partial.write_text("".join(json.dumps(problem) + "\n" for problem in problems))
        for kind, count in Counter(problem["problem"] for problem in problems).most_common(5):
            print(f"{count} x {kind}", file=sys.stderr)
        if not num_samples:
            prepared.discard(self.out, self.num_shards)
            raise ValueError(f"source: nothing could be prepared; {self.out / PROBLEMS} says why")
        negative, own = self.encoder.negative_prompt_embeds(), self.encoder.preset
        prepared.finish(self.out, self.num_shards, negative, own.text_length, own.geometry)
        if kind_of(self.items) != "prompts":
            fps = self.config.fps or self.encoder.preset.fps
            write_previews(self.out, self.encoder.codecs.video, fps)
        told = f", {len(problems)} problems in {self.out / PROBLEMS}" if problems else ""
        print(f"{num_samples} samples in {self.out}{told}", file=sys.stderr)
