"""rnn_ext.RNN in float32, where the others run in 16 bits."""

from __future__ import annotations

import torch

import rnn_ext
from benchmarks.grid import Shape
from benchmarks.peers.torch_peer import ModulePeer


class Float32Peer(ModulePeer):
    def supports(self, shape: Shape, mode: str) -> bool:
        return shape.dtype != "float32"

    def dtype(self, shape: Shape) -> torch.dtype:
        return torch.float32


def make() -> Float32Peer:
    return Float32Peer("rnn_ext float32", rnn_ext.RNN, rnn_ext.__version__)
