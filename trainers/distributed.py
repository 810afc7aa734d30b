"""Ranks: the process group, FSDP2 sharding, and what all ranks must agree on.

The only module beside checkpoint.py that knows torch.distributed. Started without torchrun there is
one rank and no group.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor


@dataclass(frozen=True)
class World:
    """This process among its peers."""

    rank: int
    num_ranks: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this rank writes files and logs."""
        return self.rank == 0


def join_world(device: str) -> World:
    """Joins torchrun's process group where there is one. `device` is auto, cpu or cuda."""
    kind = device if device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError("device: no CUDA device is visible; set device=cpu")
    if "WORLD_SIZE" not in os.environ:
        return World(0, 1, torch.device(kind))
    local_device = torch.device(f"cuda:{os.environ['LOCAL_RANK']}" if kind == "cuda" else "cpu")
    if kind == "cuda":
        torch.cuda.set_device(local_device)
    dist.init_process_group("nccl" if kind == "cuda" else "gloo")
    return World(dist.get_rank(), dist.get_world_size(), local_device)


def leave_world(world: World) -> None:
    """Closes the process group, if one was joined."""
    if dist.is_initialized():
        dist.destroy_process_group()


def shard(network: nn.Module, blocks: Iterable[nn.Module], world: World) -> None:
    """FSDP2 over all ranks, in place: every block, then the rest. One rank: nothing to do."""
    if world.num_ranks == 1:
        return
    for block in blocks:
        fully_shard(block)
    fully_shard(network)


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor gathered on every rank; any other as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def any_rank(flag: bool, world: World) -> bool:
    """True on every rank if it is true on one."""
    if world.num_ranks == 1:
        return flag
    votes = torch.tensor(int(flag), device=world.device)
    dist.all_reduce(votes, dist.ReduceOp.MAX)
    return bool(votes.item())


def mean_over_ranks(values: Tensor, world: World) -> Tensor:
    """The mean of a small tensor over the ranks, on every rank."""
    if world.num_ranks > 1:
        dist.all_reduce(values)
        values /= world.num_ranks
    return values


def from_all_ranks(values: list[str], world: World) -> list[str]:
    """The texts of all ranks in order of rank, on every rank."""
    if world.num_ranks == 1:
        return values
    gathered: list[list[str]] = [[] for _ in range(world.num_ranks)]
    dist.all_gather_object(gathered, values)
    return [text for texts in gathered for text in texts]


def barrier(world: World) -> None:
    """Waits for all ranks."""
    if world.num_ranks > 1:
        dist.barrier()
