"""Peak extra memory of a training step, each contestant in a process of its own (``ru_maxrss`` only ever rises)."""

from __future__ import annotations

import json
import resource
import subprocess
import sys

import torch
from torch import nn

import rnn_ext
from benchmarks import native
from benchmarks.grid import Shape

SHAPE = Shape(1000, 32, 256, 256)
_MODULES = {"rnn_ext": rnn_ext.RNN, "torch.nn.RNN": nn.RNN}


def _measure(name: str) -> float:
    """MiB that one forward and backward adds to the process's peak."""
    module = _MODULES[name](SHAPE.input_size, SHAPE.hidden_size)
    x = torch.randn(SHAPE.time, SHAPE.batch, SHAPE.input_size)
    # A small step first, so that code, thread pools and the like are already in memory.
    module(x[:2])[0].sum().backward()
    target = torch.zeros(SHAPE.time, SHAPE.batch, SHAPE.hidden_size)
    target += 1  # touch it
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    output, _ = module(x)
    torch.nn.functional.mse_loss(output, target).backward()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def peak_memory() -> dict[str, float]:
    """MiB by contestant, for a training step at T=1000, B=32, I=H=256."""
    result = {}
    for name in _MODULES:
        command = [sys.executable, "-m", "benchmarks.memory", name]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=native.ROOT)
        result[name] = json.loads(done.stdout)
    return result


if __name__ == "__main__":
    print(json.dumps(_measure(sys.argv[1])))
