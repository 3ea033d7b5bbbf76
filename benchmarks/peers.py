"""Who is measured. Each peer gets the same weights and input, and its output is compared before any timing."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import rnn_ext
from benchmarks.grid import FORWARD, Shape

OURS, TORCH = "rnn_ext", "torch.nn.RNN"


def make_input(shape: Shape) -> Tensor | PackedSequence:
    """Random input; if packed, with lengths spread evenly from 1 to T."""
    x = torch.randn(shape.time, shape.batch, shape.input_size)
    if not shape.packed:
        return x
    lengths = torch.linspace(shape.time, 1, shape.batch).round().long()
    return pack_padded_sequence(x, lengths)


def make_modules(shape: Shape) -> dict[str, nn.Module]:
    """Ours and torch's, with the same weights."""
    args = (shape.input_size, shape.hidden_size, shape.num_layers)
    theirs = nn.RNN(*args, bidirectional=shape.bidirectional)
    ours = rnn_ext.RNN(*args, bidirectional=shape.bidirectional)
    ours.load_state_dict(theirs.state_dict())
    return {OURS: ours, TORCH: theirs}


def _data(output: Tensor | PackedSequence) -> Tensor:
    return output.data if isinstance(output, PackedSequence) else output


def _forward(module: nn.Module, x: Tensor | PackedSequence) -> Callable[[], Tensor]:
    @torch.inference_mode()
    def call() -> Tensor:
        return _data(module(x)[0])

    return call


def _training(module: nn.Module, x: Tensor | PackedSequence, g: Tensor) -> Callable[[], Tensor]:
    parameters = list(module.parameters())

    def call() -> Tensor:
        output = _data(module(x)[0])
        return torch.autograd.grad(output, parameters, g)[1]

    return call


def contestants(shape: Shape, mode: str) -> dict[str, Callable[[], Tensor]]:
    """A call for each peer, after checking that all of them compute the same.

    Raises:
        AssertionError: the results differ.
    """
    torch.manual_seed(0)
    x = make_input(shape)
    modules = make_modules(shape)
    if mode == FORWARD:
        calls = {name: _forward(m, x) for name, m in modules.items()}
    else:
        with torch.no_grad():
            g = torch.randn_like(_data(modules[TORCH](x)[0]))
        calls = {name: _training(m, x, g) for name, m in modules.items()}
    expected = calls[TORCH]()
    for name, call in calls.items():
        torch.testing.assert_close(call(), expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item(), msg=name)
    return calls
