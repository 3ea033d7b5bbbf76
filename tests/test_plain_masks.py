"""The CPU's ops for a plain layer with a mask of the recurrent connections, likewise beside the pieces."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import cell_loop, ragged_cell_loop
from plain import DTYPES, Watch, compare_with_pieces
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import rnn_ext
from rnn_ext import dispatch
from rnn_ext.layer import layer

pytestmark = pytest.mark.skipif(not dispatch._HAS_ONE_OP, reason="this build has no plain ops")

# What goes to the ops beside a mask.
KINDS = ["dense", "packed", "lengths", "reset", "lengths and reset"]


class Masked(nn.Module):
    """One layer's call with a mask; torch's, which has none, is a cell and, if ragged, a sequence at a time."""

    def __init__(self, module: nn.Module, kind: str, mask: Tensor, lengths: Tensor, reset: Tensor) -> None:
        super().__init__()
        self.module, self.kind, self.lengths, self.hidden_size = module, kind, lengths, module.hidden_size
        self.register_buffer("mask", mask)
        self.reset = reset if "reset" in kind else None

    def forward(self, x: Tensor, hx: Tensor | None) -> tuple[Tensor, Tensor]:
        direction = (1, -1) if self.module.bidirectional else (1,)
        packed = self.kind == "packed"
        # Of a packed sequence x is the data; sequences are in order then.
        batch_sizes = torch.tensor([(self.lengths > t).sum() for t in range(int(self.lengths.max()))])
        if isinstance(self.module, rnn_ext.RNN):
            lengths = self.lengths if "lengths" in self.kind else None
            rows = (batch_sizes if packed else None, lengths, self.reset, self.mask, None)
            groups, phi = self.module.all_weights, self.module.nonlinearity
            return layer(x, groups, hx, phi, *rows, direction, True)
        if packed:
            x, _ = pad_packed_sequence(nn.utils.rnn.PackedSequence(x, batch_sizes))
        hx = x.new_zeros(self.mask.shape) if hx is None else hx
        rows: dict[str, Any] = {"masks": [self.mask], "reset": self.reset}
        if packed or "lengths" in self.kind:
            output, h_n = ragged_cell_loop(self.module, x, hx, self.lengths.tolist(), **rows)
        else:
            output, h_n = cell_loop(self.module, x, hx, **rows)
        return pack_padded_sequence(output, self.lengths).data if packed else output, h_n


def compare(
    kind: str,
    dtype: torch.dtype,
    bidirectional: bool,
    shape: tuple[int, int, int, int],
    plain_calls: Counter[str],
) -> None:
    time, batch, features, hidden = shape
    module = rnn_ext.RNN(features, hidden, bidirectional=bidirectional).to(dtype)
    groups = len(module.all_weights)
    mask = F.dropout(torch.ones(groups, batch, hidden, dtype=dtype), 0.3)
    lengths = torch.randint(1, time + 1, (batch,))
    lengths[0] = time
    if kind == "packed":
        lengths = lengths.sort(descending=True)[0]
    reset = torch.rand(batch, time).t() < 0.3
    reset[0] = False  # which a layer leaves to whoever gives it hx
    x, g = (torch.randn(time, batch, n, dtype=dtype) for n in (features, groups * hidden))
    if kind == "packed":
        x, g = (pack_padded_sequence(t, lengths).data for t in (x, g))
    x.requires_grad_()
    hx = torch.randn(groups, batch, hidden, dtype=dtype, requires_grad=True)
    g_n = torch.randn(groups, batch, hidden, dtype=dtype)
    ours, theirs = (Masked(m, kind, mask, lengths, reset) for m in (module, rnn_ext.to_torch(copy.deepcopy(module))))
    cases = [(hx, g, g_n), (None, g, None)]
    for case in cases:
        compare_with_pieces(ours, theirs, x, case, 1, plain_calls, f"{shape} {kind}", (time * batch) ** 0.5)
    assert plain_calls["_plain_layer"] == plain_calls["_plain_layer_backward"] == len(cases)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("kind", KINDS)
# Some of so few rows that weights are not packed.
@pytest.mark.parametrize("shape", [(1, 3, 2, 7), (2, 1, 33, 37), (3, 2, 1, 1), (5, 3, 131, 131), (19, 4, 3, 17)])
def test_results_are_those_of_the_pieces(
    kind: str, dtype: torch.dtype, bidirectional: bool, shape: tuple[int, int, int, int], plain_calls: Counter[str]
) -> None:
    compare(kind, dtype, bidirectional, shape, plain_calls)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("kind", ["dense", "reset"])
def test_the_time_in_parts(kind: str, dtype: torch.dtype, bidirectional: bool, plain_calls: Counter[str]) -> None:
    """Of backward, where there are rows enough."""
    torch.set_num_threads(2)  # with many of them, parts are larger
    compare(kind, dtype, bidirectional, (73, 130, 5, 129), plain_calls)


@pytest.mark.parametrize("options", [{}, {"num_layers": 2}, {"bidirectional": True}])
def test_recurrent_dropout_of_padded_batches(options: dict[str, int], plain_calls: Counter[str]) -> None:
    """By the plain ops, which never read what is in the padding; and the same draw from the same seed."""
    module = rnn_ext.RNN(3, 17, recurrent_dropout=0.4, **options).double()
    lengths, time = torch.tensor([4, 9, 1, 9]), 11
    ended = torch.arange(time).unsqueeze(1) >= lengths
    x = torch.randn(time, 4, 3).double()

    def found(x: Tensor) -> list[Tensor]:
        torch.manual_seed(5)
        x = x.detach().clone().requires_grad_()
        output, h_n = module(x, lengths=lengths)
        return [output, h_n, *torch.autograd.grad(output.sin().sum() + h_n.sum(), [x, *module.parameters()])]

    expected = found(x)
    assert plain_calls == {"_plain_layer": module.num_layers, "_plain_layer_backward": module.num_layers}
    assert all(map(torch.equal, found(x.masked_fill(ended.unsqueeze(2), torch.nan)), expected))
    with Watch():
        torch.testing.assert_close(found(x), expected)


def test_a_draw_is_the_same_by_either_way() -> None:
    """Also where the sequences are packed, in another order."""
    module, x, lengths = rnn_ext.RNN(3, 5, recurrent_dropout=0.5), torch.randn(6, 3, 3), torch.tensor([2, 6, 4])
    torch.manual_seed(0)
    expected, _ = module(x, lengths=lengths)
    torch.manual_seed(0)
    found, _ = torch.func.jvp(lambda x: module(x, lengths=lengths)[0], (x,), (torch.ones_like(x),))
    torch.testing.assert_close(found, expected)


def test_a_mask_is_a_constant() -> None:
    module, mask = rnn_ext.RNN(3, 5), torch.ones(1, 2, 5, requires_grad=True)
    with pytest.raises(RuntimeError, match="mask must be a constant"):
        layer(torch.randn(4, 2, 3), module.all_weights, None, "tanh", None, None, None, mask, None, (1,))


@pytest.mark.parametrize(
    ("mask", "sentence"),
    [
        (torch.zeros(()), r"mask must have shape \(1, 2, 5\), got \(\)"),
        (torch.zeros(1, 2, 4), r"mask must have shape \(1, 2, 5\), got \(1, 2, 4\)"),
        (torch.zeros(1, 2, 5).double(), "all of the tensors must be on w's device and of its dtype"),
    ],
)
def test_bad_masks(mask: Tensor, sentence: str) -> None:
    x, w_ih, w_hh, h = torch.zeros(4, 2, 3), torch.zeros(5, 3), torch.zeros(5, 5), torch.zeros(4, 2, 5)
    rows = (None, None, None, mask)
    with pytest.raises(RuntimeError, match=sentence):
        torch.ops.rnn_ext.plain_layer(x, None, w_ih, w_hh, None, None, *rows, False, False)
    with pytest.raises(RuntimeError, match=sentence):
        torch.ops.rnn_ext.plain_layer_backward(
            h, None, x, None, w_ih, w_hh, h, *rows, False, False, True, True, True, True, True
        )
