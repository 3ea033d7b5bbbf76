"""rnn_ext.RNN, used as torch.nn.RNN is."""

from __future__ import annotations

import rnn_ext
from benchmarks.peers.torch_peer import ModulePeer


def make() -> ModulePeer:
    return ModulePeer("rnn_ext", rnn_ext.RNN, rnn_ext.__version__)
