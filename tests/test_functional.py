"""The functional face, beside torch.nn."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rnn_ext import functional


def test_rnn_with_own_parameters() -> None:
    module = nn.RNN(3, 5, 2, "relu", bidirectional=True)
    x, hx = torch.randn(7, 2, 3), torch.randn(4, 2, 5)
    ours = functional.rnn(x, module.all_weights, hx, nonlinearity="relu", bidirectional=True)
    torch.testing.assert_close(ours, module(x, hx))


@pytest.mark.parametrize("bidirectional", [False, True])
def test_lengths_equal_packing(bidirectional: bool) -> None:
    module = nn.RNN(3, 5, 2, bidirectional=bidirectional)
    x, lengths = torch.randn(7, 4, 3), torch.tensor([3, 7, 1, 5])
    packed = nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
    expected, h_n = module(packed)
    expected = nn.utils.rnn.pad_packed_sequence(expected)[0]
    output, last = functional.rnn(x, module.all_weights, lengths=lengths, bidirectional=bidirectional)
    torch.testing.assert_close((output, last), (expected, h_n))
    grads = [torch.autograd.grad(y.pow(2).sum(), list(module.parameters())) for y in (output, expected)]
    torch.testing.assert_close(*grads)


def test_nan_in_the_padding_reaches_no_gradient() -> None:
    module = nn.RNN(3, 5, 2, bidirectional=True)
    x, lengths = torch.randn(5, 2, 3), torch.tensor([5, 3])
    poisoned = x.clone()
    poisoned[3:, 1] = torch.nan
    grads = []
    for values in (x, poisoned):
        values.requires_grad_()
        output, _ = functional.rnn(values, module.all_weights, lengths=lengths, bidirectional=True)
        grads.append(torch.autograd.grad(output.pow(2).sum(), [values, *module.parameters()]))
    for clean, other in zip(*grads, strict=True):
        assert torch.equal(clean, other)


def test_bad_arguments() -> None:
    weights = nn.RNN(3, 5).all_weights
    with pytest.raises(ValueError, match="Unknown nonlinearity 'sin'"):
        functional.rnn(torch.randn(7, 2, 3), weights, nonlinearity="sin")
    with pytest.raises(ValueError, match=r"one group for each layer and direction \(2 directions\), got 1"):
        functional.rnn(torch.randn(7, 2, 3), weights, bidirectional=True)
    with pytest.raises(RuntimeError, match="Expected sequence length to be larger than 0 in RNN"):
        functional.rnn(torch.randn(0, 2, 3), weights)
    with pytest.raises(ValueError, match="Unknown nonlinearity 'sin'"):
        functional.rnn_cell(torch.randn(2, 3), torch.randn(2, 5), *weights[0], nonlinearity="sin")


def test_rnn_cell() -> None:
    cell = nn.RNNCell(3, 5)
    x, h = torch.randn(2, 3), torch.randn(2, 5)
    ours = functional.rnn_cell(x, h, cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh)
    assert torch.equal(ours, cell(x, h))
