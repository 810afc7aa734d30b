"""What the engine adds to the forwards and backwards of a DMD2 step: a row of bench.py."""

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipelines.catalog.registry import Registry
from trainers.engine import Trainer
from trainers.networks.performance import autocast
from trainers.ranks.ranks import Ranks
from trainers.registry import build_config, read_tree

PRESET = Path("presets/train/tiny_dmd4.yaml")
# Both optimizers in every step. Compiled blocks would only make the first steps slow.
OVERRIDES = ["algorithm.student_every=1", "compile_blocks=false", "device=cpu"]
NUM_STEPS = 8
ONE = Ranks(0, 1, torch.device("cpu"))

Forward = tuple[str | None, bool, dict[str, Any]]  # adapter, whether it has a gradient, inputs


def bench_dmd2(folder: Path) -> list[tuple[str, str]]:
    """The engine's whole step against the same forwards and backwards in a bare loop.

    The whole step is data, rollout, losses, clipping, both optimizers and the moving average; the
    bare loop runs the same transformer with the same adapters on the same inputs, and nothing else.
    Each step is followed by its own bare loop, so that a busy machine slows both.
    """
    config = build_config(read_tree(PRESET, OVERRIDES))
    run = Trainer(config, Registry(), folder / "run", ONE)
    whole_sec, bare_sec = [], []
    for step in range(NUM_STEPS + 1):
        run.step = step
        with recorded(run) as updates:
            began = time.perf_counter()
            run.train_step()
            whole_sec.append(time.perf_counter() - began)
        began = time.perf_counter()
        for forwards in updates:
            run_bare(run, forwards)
        bare_sec.append(time.perf_counter() - began)
        for role in run.roles.values():
            for parameter in role.trained.values():
                parameter.grad = None
    ratios = [a / b for a, b in zip(whole_sec[1:], bare_sec[1:], strict=True)]  # the first warms up
    medians = f"{statistics.median(whole_sec[1:]):.2f} s, {statistics.median(bare_sec[1:]):.2f} s"
    what = "a DMD2 step, LoRA roles on one base, batch 16; its bare forwards and backwards; ratio"
    return [(what, f"{medians}, {statistics.median(ratios):.3f}x")]


@contextmanager
def recorded(run: Trainer) -> Iterator[list[list[Forward]]]:
    """The transformer's forwards while it is open, a list for each update."""
    call: Any = run.roles["student"].call
    updates: list[list[Forward]] = []
    update = run._update

    def begin(*arguments: Any) -> dict[str, Tensor]:
        updates.append([])
        return update(*arguments)

    def keep(module: torch.nn.Module, inputs: tuple[()], named: dict[str, Any]) -> None:
        kept = {k: v.detach() if isinstance(v, Tensor) else v for k, v in named.items()}
        updates[-1].append((call.switch.active, torch.is_grad_enabled(), kept))

    handle = call.transformer.register_forward_pre_hook(keep, with_kwargs=True)
    run._update = begin  # type: ignore[method-assign]
    try:
        yield updates
    finally:
        handle.remove()
        del run._update


def run_bare(run: Trainer, forwards: list[Forward]) -> None:
    """One update's forwards, and the backward of the one that has a gradient."""
    call: Any = run.roles["student"].call
    outputs: list[Tensor] = []
    with autocast(run.config.precision, ONE):  # as long as the engine's, which keeps its casts
        for adapter, has_gradient, named in forwards:
            call.switch.activate(adapter)
            with torch.set_grad_enabled(has_gradient):
                (velocity,) = call.transformer(**named)
            outputs += [velocity] if velocity.requires_grad else []
    (output,) = outputs
    output.float().mean().backward()
