"""Fused kernels for Elman RNNs: ``rnn_ext.RNN`` and ``rnn_ext.RNNCell`` drop in for torch.nn's."""

from rnn_ext import functional
from rnn_ext.convert import from_torch, to_torch
from rnn_ext.info import build_info, explain
from rnn_ext.modules import RNN, RNNCell

__all__ = ["RNN", "RNNCell", "build_info", "explain", "from_torch", "functional", "to_torch"]
__version__ = "0.1.0"
