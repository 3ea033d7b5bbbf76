"""One process of a training under ``torchrun``; started by test_training.py.

    torchrun --nproc-per-node 2 tests/distributed_worker.py ddp|fsdp OUT

Trains on its share of the rows. Rank 0 writes the weights to OUT/weights.pt, all of them their shards to OUT/shards.
"""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.rnn import pack_padded_sequence

import rnn_ext

ROWS, STEPS = 8, 4


class Classifier(nn.Module):
    """The class of a sequence, from the last states of a ragged batch."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = rnn_ext.RNN(5, 7, 2, bidirectional=True)
        self.head = nn.Linear(14, 3)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        _, h_n = self.rnn(pack_padded_sequence(x, lengths, enforce_sorted=False))
        return self.head(torch.cat([h_n[-2], h_n[-1]], -1))


def fresh() -> Classifier:
    """The same weights in every process."""
    torch.manual_seed(0)
    return Classifier()


def train(model: nn.Module, rows: slice = slice(None)) -> None:
    """A few steps on these rows of each batch; the batches are the same in every process."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    generator = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        x = torch.randn(6, ROWS, 5, generator=generator)
        lengths = torch.randint(1, 7, (ROWS,), generator=generator)
        classes = torch.randint(3, (ROWS,), generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[:, rows], lengths[rows]), classes[rows]).backward()
        optimizer.step()


def main(way: str, out: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, processes = dist.get_rank(), dist.get_world_size()
    share = ROWS // processes
    model = fresh()
    if way == "ddp":
        wrapped: nn.Module = DistributedDataParallel(model)
    else:
        mesh = init_device_mesh("cpu", (processes,))
        fully_shard(model.rnn, mesh=mesh)
        wrapped = fully_shard(model, mesh=mesh)
        assert isinstance(wrapped, FSDPModule)
    train(wrapped, slice(rank * share, (rank + 1) * share))
    weights = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    shards = get_model_state_dict(model)
    dcp.save({"model": shards}, checkpoint_id=out / "shards")
    if rank == 0:
        torch.save(weights, out / "weights.pt")
    # And back, into what has other weights now.
    set_model_state_dict(model, {name: torch.zeros_like(t) for name, t in shards.items()})
    state = {"model": get_model_state_dict(model)}
    dcp.load(state, checkpoint_id=out / "shards")
    set_model_state_dict(model, state["model"])
    again = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    assert all(torch.equal(again[name], weights[name]) for name in weights)
    # The wrapper goes before the group: where it holds the last reference, its destructor waits, with the interpreter's
    # lock, for a thread of Gloo that may be waiting for that lock.
    del wrapped
    gc.collect()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
