"""Ranks: the process group, FSDP2 and HSDP sharding, context parallelism, and what all agree on.

The only module beside checkpoint.py that knows torch.distributed. Started without torchrun there is
one rank and no group. With n = replicate x shard x context ranks, neighbours first:

    weights      each of `replicate` copies is split over shard x context ranks
    batches      the `context` ranks of a group see the same one and hold a part of its tokens each
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor

from trainers.settings.run import Parallel


@dataclass(frozen=True)
class Ranks:
    """This process among its peers. The meshes are there where there are several ranks."""

    rank: int
    num_ranks: int
    device: torch.device
    context: int = 1  # ranks that share a batch
    weights_mesh: DeviceMesh | None = None  # (shard) or (replicate, shard)
    context_mesh: DeviceMesh | None = None  # (ring, ulysses); ring is 1

    @property
    def is_main(self) -> bool:
        """Whether this rank writes files and logs."""
        return self.rank == 0

    @property
    def data_rank(self) -> int:
        """Which batch this rank sees, below `num_data_ranks`."""
        return self.rank // self.context

    @property
    def num_data_ranks(self) -> int:
        """The number of different batches at a time."""
        return self.num_ranks // self.context


def join_ranks(device: str, parallel: Parallel | None = None) -> Ranks:
    """Joins torchrun's process group where there is one. `device` is auto, cpu or cuda.

    May be called again, to lay out the same ranks in another way. ValueError where the sizes in
    `parallel` do not multiply to the number of ranks.
    """
    parallel = parallel or Parallel()
    kind = device if device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError("device: no CUDA device is visible; set device=cpu")
    num_ranks = int(os.environ.get("WORLD_SIZE", "1"))
    _require_product(parallel, num_ranks)
    if parallel.cpu_offload and (kind == "cpu" or num_ranks == 1):
        raise ValueError(
            "parallel.cpu_offload: it needs several CUDA ranks under torchrun; leave it out"
        )
    if "WORLD_SIZE" not in os.environ:
        return Ranks(0, 1, torch.device(kind))
    local_device = torch.device(f"cuda:{os.environ['LOCAL_RANK']}" if kind == "cuda" else "cpu")
    if kind == "cuda":
        torch.cuda.set_device(local_device)
    # Once a process: a second group would meet at the addresses that the first left in torchrun's
    # store, and wait there for ever.
    if not dist.is_initialized():
        # gloo beside nccl for what is offloaded: the norm of gradients that lie on the CPU
        dist.init_process_group("cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo")
    if num_ranks == 1:
        return Ranks(0, 1, local_device)
    weights_mesh = _weights_mesh(kind, parallel.replicate, num_ranks)
    context_mesh = None
    if parallel.context > 1:
        shape = (num_ranks // parallel.context, 1, parallel.context)
        groups = init_device_mesh(kind, shape, mesh_dim_names=("data", "ring", "ulysses"))
        context_mesh = groups["ring", "ulysses"]
    rank = dist.get_rank()
    return Ranks(rank, num_ranks, local_device, parallel.context, weights_mesh, context_mesh)


def _weights_mesh(kind: str, replicate: int, num_ranks: int) -> DeviceMesh:
    if replicate == 1:
        return init_device_mesh(kind, (num_ranks,), mesh_dim_names=("shard",))
    shape = (replicate, num_ranks // replicate)
    return init_device_mesh(kind, shape, mesh_dim_names=("replicate", "shard"))


def _require_product(parallel: Parallel, num_ranks: int) -> None:
    """ValueError naming the size that does not fit the number of ranks."""
    rest = parallel.replicate * parallel.context
    if num_ranks % rest:
        field = "context" if parallel.context > 1 else "replicate"
        raise ValueError(
            f"parallel.{field}: replicate {parallel.replicate} x context {parallel.context} does "
            f"not divide the {num_ranks} rank(s); start so many with torchrun, or lower it"
        )
    if parallel.shard is not None and parallel.shard * rest != num_ranks:
        raise ValueError(
            f"parallel.shard: it is {parallel.shard} but {num_ranks} rank(s) leave "
            f"{num_ranks // rest}; set that, or leave it empty"
        )


def leave_ranks(ranks: Ranks) -> None:
    """Closes the process group, if one was joined."""
    if dist.is_initialized():
        dist.destroy_process_group()


def shard(
    network: nn.Module, blocks: Iterable[nn.Module], ranks: Ranks, cpu_offload: bool = False
) -> None:
    """Brings a network to its device; with several ranks split by FSDP2: each block, then the rest.

    The rest is split again after every forward too, so that parameters look alike between steps.
    """
    if ranks.weights_mesh is None:
        network.to(ranks.device)
        return
    policy = CPUOffloadPolicy() if cpu_offload else OffloadPolicy()
    for part in (*blocks, network):
        fully_shard(
            part, mesh=ranks.weights_mesh, reshard_after_forward=True, offload_policy=policy
        )


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor gathered on every rank; any other as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def any_rank(flag: bool, ranks: Ranks) -> bool:
    """True on every rank if it is true on one."""
    if ranks.num_ranks == 1:
        return flag
    votes = torch.tensor(int(flag), device=ranks.device)
    dist.all_reduce(votes, dist.ReduceOp.MAX)
    return bool(votes.item())


def mean_over_ranks(values: Tensor, ranks: Ranks) -> Tensor:
    """The mean of a small tensor over the ranks, on every rank."""
    if ranks.num_ranks > 1:
        dist.all_reduce(values)
        values /= ranks.num_ranks
    return values


def from_all_ranks(values: list[str], ranks: Ranks) -> list[str]:
    """The texts of all ranks in order of rank, on every rank."""
    if ranks.num_ranks == 1:
        return values
    gathered: list[list[str]] = [[] for _ in range(ranks.num_ranks)]
    dist.all_gather_object(gathered, values)
    return [text for texts in gathered for text in texts]


def barrier(ranks: Ranks) -> None:
    """Waits for all ranks."""
    if ranks.num_ranks > 1:
        dist.barrier()
