"""The CPU's ops for a plain layer with packed rows, with lengths and with resets, likewise beside the pieces."""

from __future__ import annotations

import copy
import itertools
from collections import Counter
from typing import Any

import pytest
import torch
from helpers import cell_loop
from plain import DTYPES, Watch, compare_with_pieces, results
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence, pad_packed_sequence

import rnn_ext
from rnn_ext import dispatch

pytestmark = pytest.mark.skipif(not dispatch._HAS_ONE_OP, reason="this build has no plain ops")


class OfData(nn.Module):
    """A module's call for a PackedSequence's data, and nothing else of it."""

    def __init__(self, module: nn.Module, packed: PackedSequence) -> None:
        super().__init__()
        self.module, self.packed = module, packed

    def forward(self, data: Tensor, hx: Tensor | None) -> tuple[Tensor, Tensor]:
        output, h_n = self.module(self.packed._replace(data=data), hx)
        return output.data, h_n


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, {"bidirectional": True, "bias": False}, {"num_layers": 2}])
@pytest.mark.parametrize(
    ("lengths", "features", "hidden"),
    [([1], 5, 67), ([2, 1], 3, 131), ([4, 4], 4, 7), ([3, 9, 1, 1, 5], 3, 17), ([*range(1, 40)], 65, 33)],
)
def test_packed_results_are_those_of_the_pieces(
    lengths: list[int],
    features: int,
    hidden: int,
    options: dict[str, Any],
    dtype: torch.dtype,
    plain_calls: Counter[str],
) -> None:
    module = rnn_ext.RNN(features, hidden, **options).to(dtype)
    packed = pack_sequence([torch.randn(n, features, dtype=dtype) for n in lengths], enforce_sorted=False)
    torch_module = rnn_ext.to_torch(copy.deepcopy(module))
    groups, batch, rows = len(module.all_weights), len(lengths), sum(lengths)
    columns = hidden * (2 if module.bidirectional else 1)
    x = packed.data.requires_grad_()
    hx = torch.randn(groups, batch, hidden, dtype=dtype, requires_grad=True)
    g, g_n = torch.randn(rows, columns, dtype=dtype), torch.randn(groups, batch, hidden, dtype=dtype)
    ours, theirs = (OfData(m, packed) for m in (module, torch_module))
    cases = [(hx, g, g_n), (None, g, None), (hx, None, g_n)]
    for case in cases:
        compare_with_pieces(ours, theirs, x, case, module.num_layers, plain_calls, f"{lengths} {options}", rows**0.5)
    assert plain_calls["_plain_layer"] == plain_calls["_plain_layer_backward"] == len(cases) * module.num_layers


class OfPadded(nn.Module):
    """A module's call for a padded batch with lengths; torch's, which has none, packs it."""

    def __init__(self, module: nn.Module, lengths: Tensor) -> None:
        super().__init__()
        self.module, self.lengths = module, lengths

    def forward(self, x: Tensor, hx: Tensor | None) -> tuple[Tensor, Tensor]:
        if isinstance(self.module, rnn_ext.RNN):
            return self.module(x, hx, lengths=self.lengths)
        output, h_n = self.module(pack_padded_sequence(x, self.lengths, enforce_sorted=False), hx)
        return pad_packed_sequence(output, total_length=len(x))[0], h_n


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", [{}, {"bidirectional": True, "bias": False}, {"num_layers": 2}])
@pytest.mark.parametrize("by_sequence", [False, True])
@pytest.mark.parametrize(
    ("lengths", "features", "hidden"),
    # In order and not; of so few rows that weights are not packed; and larger than what the kernel projects itself.
    [
        *[([1], 5, 67), ([1, 2], 3, 131), ([4, 4], 4, 7), ([3, 9, 1, 1, 5], 3, 17), ([5, 4, 4, 1], 3, 17)],
        *[([*range(40, 1, -1)], 65, 33), ([7, 31, 2, 31], 7, 37), ([2, 9], 1000, 600)],
    ],
)
def test_padded_results_are_those_of_the_pieces(
    lengths: list[int],
    features: int,
    hidden: int,
    options: dict[str, Any],
    by_sequence: bool,
    dtype: torch.dtype,
    plain_calls: Counter[str],
) -> None:
    module = rnn_ext.RNN(features, hidden, **options).to(dtype)
    torch_module = rnn_ext.to_torch(copy.deepcopy(module))
    groups, batch, time, rows = len(module.all_weights), len(lengths), max(lengths) + 2, sum(lengths)
    columns = hidden * (2 if module.bidirectional else 1)
    x = torch.randn(batch, time, features, dtype=dtype).transpose(0, 1)
    x = (x if by_sequence else x.contiguous()).requires_grad_()
    hx = torch.randn(groups, batch, hidden, dtype=dtype, requires_grad=True)
    g, g_n = torch.randn(time, batch, columns, dtype=dtype), torch.randn(groups, batch, hidden, dtype=dtype)
    ours, theirs = (OfPadded(m, torch.tensor(lengths)) for m in (module, torch_module))
    cases = [(hx, g, g_n), (None, g, None), (hx, None, g_n)]
    for case in cases:
        compare_with_pieces(ours, theirs, x, case, module.num_layers, plain_calls, f"{lengths} {options}", rows**0.5)
    assert plain_calls["_plain_layer"] == plain_calls["_plain_layer_backward"] == len(cases) * module.num_layers
    expected = results(ours, x, *cases[0])
    # What is in the padding is never read.
    ended = torch.arange(time).unsqueeze(1) >= torch.tensor(lengths)
    poisoned = x.detach().clone().masked_fill_(ended.unsqueeze(2), torch.nan).requires_grad_()
    found = results(ours, poisoned, hx, g.masked_fill(ended.unsqueeze(2), torch.nan), g_n)
    assert all(map(torch.equal, found, expected))


class WithResets(nn.Module):
    """A module's call with resets; torch's, which has none, is a cell at a time."""

    def __init__(self, module: nn.Module, reset: Tensor) -> None:
        super().__init__()
        self.module, self.reset, self.hidden_size = module, reset, module.hidden_size

    def forward(self, x: Tensor, hx: Tensor | None) -> tuple[Tensor, Tensor]:
        if isinstance(self.module, rnn_ext.RNN):
            return self.module(x, hx, reset=self.reset)
        zeros = x.new_zeros(len(self.module.all_weights), x.shape[1], self.hidden_size)
        return cell_loop(self.module, x, zeros if hx is None else hx, reset=self.reset)


RESET_SHAPES = [(1, 3, 2, 7), (2, 1, 33, 37), (3, 2, 1, 1), (5, 3, 131, 131), (33, 5, 3, 17), (100, 1, 64, 64)]
# Of one direction, backward takes these in parts of the time, between which a state passes or does not.
IN_PARTS = [(73, 130, 5, 129), (3, 3163, 5, 129)]


@pytest.mark.parametrize("options", [{}, {"bidirectional": True}, {"num_layers": 2}])
@pytest.mark.parametrize(
    ("dtype", "shape"),
    [*itertools.product(DTYPES, RESET_SHAPES), *itertools.product((torch.float32, torch.float64), IN_PARTS)],
)
def test_results_with_resets_are_those_of_the_pieces(
    shape: tuple[int, int, int, int], options: dict[str, Any], dtype: torch.dtype, plain_calls: Counter[str]
) -> None:
    torch.set_num_threads(2)  # with many of them, parts are larger
    time, batch, features, hidden = shape
    module = rnn_ext.RNN(features, hidden, **options).to(dtype)
    torch_module = rnn_ext.to_torch(copy.deepcopy(module))
    groups = len(module.all_weights)
    columns = hidden * (2 if module.bidirectional else 1)
    reset = torch.rand(batch, time).t() < 0.3
    x = torch.randn(time, batch, features, dtype=dtype, requires_grad=True)
    hx = torch.randn(groups, batch, hidden, dtype=dtype, requires_grad=True)
    g, g_n = torch.randn(time, batch, columns, dtype=dtype), torch.randn(groups, batch, hidden, dtype=dtype)
    what, walk = f"{shape} {options}", (time * batch) ** 0.5
    ours, theirs = (WithResets(m, reset) for m in (module, torch_module))
    cases = [(hx, g, g_n), (None, g, None)]
    for case in cases:
        compare_with_pieces(ours, theirs, x, case, module.num_layers, plain_calls, what, walk)
    assert plain_calls["_plain_layer"] == plain_calls["_plain_layer_backward"] == len(cases) * module.num_layers


@pytest.mark.parametrize("hx_given", [False, True])
@pytest.mark.parametrize("options", [{}, {"bidirectional": True}, {"batch_first": True}])
def test_resets_of_padded_batches(options: dict[str, Any], hx_given: bool, plain_calls: Counter[str]) -> None:
    """What is in the padding is never read, neither of the input nor of the resets."""
    module = rnn_ext.RNN(3, 17, **options).double()
    lengths, time = torch.tensor([4, 9, 1, 9]), 11
    ended = torch.arange(time).unsqueeze(1) >= lengths
    x, reset = torch.randn(time, 4, 3).double(), torch.rand(time, 4) < 0.4
    hx = torch.randn(len(module.all_weights), 4, 17).double() if hx_given else None

    def found(x: Tensor, reset: Tensor) -> list[Tensor]:
        if module.batch_first:
            x, reset = x.transpose(0, 1), reset.t()
        x = x.detach().clone().requires_grad_()
        output, h_n = module(x, hx, lengths=lengths, reset=reset)
        return [output, h_n, *torch.autograd.grad(output.sin().sum() + h_n.sum(), [x, *module.parameters()])]

    expected = found(x, reset)
    assert plain_calls == {"_plain_layer": 1, "_plain_layer_backward": 1}
    poisoned = found(x.masked_fill(ended.unsqueeze(2), torch.nan), reset ^ ended)
    assert all(map(torch.equal, poisoned, expected))
    with Watch():
        torch.testing.assert_close(found(x, reset), expected)


def test_resets_are_kept_for_backward() -> None:
    """A buffer of them may be used again before backward."""
    module, x, reset = rnn_ext.RNN(3, 5), torch.randn(6, 2, 3), torch.rand(6, 2) < 0.5
    weights = list(module.parameters())
    expected = torch.autograd.grad(module(x, reset=reset)[0].sum(), weights)
    output, _ = module(x, reset=reset)
    reset.logical_not_()
    assert all(map(torch.equal, torch.autograd.grad(output.sum(), weights), expected))


@pytest.mark.parametrize(
    ("batch_sizes", "reset", "sentence"),
    [
        (None, torch.zeros(4, 2), "reset must be a bool tensor on w's device"),
        (None, torch.zeros(2, 4, dtype=torch.bool), r"reset must have shape \(4, 2\), got \(2, 4\)"),
        (torch.tensor([2, 2]), torch.zeros(2, 2, dtype=torch.bool), "reset is for padded sequences"),
    ],
)
def test_bad_resets(batch_sizes: Tensor | None, reset: Tensor, sentence: str) -> None:
    h0, x = None, torch.zeros(4, 2, 3)
    w_ih, w_hh, b_ih, b_hh = torch.zeros(5, 3), torch.zeros(5, 5), torch.zeros(5), torch.zeros(5)
    h = torch.zeros(4, 2, 5)
    if batch_sizes is not None:
        x, h = (t.flatten(0, 1) for t in (x, h))
    with pytest.raises(RuntimeError, match=sentence):
        torch.ops.rnn_ext.plain_layer(x, h0, w_ih, w_hh, b_ih, b_hh, batch_sizes, None, reset, None, False, False)
    rest = (batch_sizes, None, reset, None, *(False,) * 2, *(True,) * 5)
    with pytest.raises(RuntimeError, match=sentence):
        torch.ops.rnn_ext.plain_layer_backward(h, None, x, h0, w_ih, w_hh, h, *rest)
