"""Padded batches with lengths run as packed ones: what is in the padding is not touched, and derivatives agree with
the layer on each sequence alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.func import grad, jvp, vmap

import rnn_ext
from rnn_ext.packing import Packing, Padding

LENGTHS = (3, 7, 1, 5, 7)
TIME = 8  # nobody has so many steps


def case(bidirectional: bool = False, batch_first: bool = False) -> tuple[rnn_ext.RNN, Tensor, Tensor]:
    torch.manual_seed(0)
    module = rnn_ext.RNN(3, 5, bidirectional=bidirectional, batch_first=batch_first).double()
    x = torch.randn(len(LENGTHS), TIME, 3, dtype=torch.float64)
    x = x if batch_first else x.transpose(0, 1).contiguous()
    return module, x, torch.randn(2 if bidirectional else 1, len(LENGTHS), 5, dtype=torch.float64)


def alone(module: rnn_ext.RNN, x: Tensor, hx: Tensor) -> tuple[Tensor, Tensor]:
    """Each sequence by itself, padded with zeros."""
    by_step = x.transpose(0, 1) if module.batch_first else x
    outputs, states = [], []
    for i, n in enumerate(LENGTHS):
        one = by_step[:n, i : i + 1]
        y, h_n = module(one.transpose(0, 1) if module.batch_first else one, hx[:, i : i + 1])
        y = y.transpose(0, 1) if module.batch_first else y
        outputs.append(torch.cat([y, y.new_zeros(TIME - n, 1, y.shape[2])]))
        states.append(h_n)
    output = torch.cat(outputs, 1)
    return output.transpose(0, 1) if module.batch_first else output, torch.cat(states, 1)


def together(module: rnn_ext.RNN, x: Tensor, hx: Tensor) -> tuple[Tensor, Tensor]:
    return module(x, hx, lengths=torch.tensor(LENGTHS))


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_values_and_gradients(bidirectional: bool, batch_first: bool) -> None:
    module, x, hx = case(bidirectional, batch_first)
    output, _ = together(module, x, hx)
    assert output.is_contiguous(), "laid out as the input is"
    results = []
    for run in (together, alone):
        leaves = [x.clone().requires_grad_(), hx.clone().requires_grad_(), *module.parameters()]
        y, h_n = run(module, *leaves[:2])
        first = torch.autograd.grad(y.pow(2).sum() + h_n.pow(3).sum(), leaves, create_graph=True)
        second = torch.autograd.grad(sum(g.pow(2).sum() for g in first), leaves)
        results.append([y, h_n, *first, *second])
    torch.testing.assert_close(*results)


def test_transforms() -> None:
    module, x, hx = case()

    def loss(run: Callable[..., Any], x: Tensor) -> Tensor:
        return run(module, x, hx)[0].pow(2).sum()

    many = torch.stack([x, 2 * x, -x])
    for transform in (
        lambda run: jvp(lambda x: run(module, x, hx), (x,), (x.cos(),)),
        lambda run: vmap(lambda x: run(module, x, hx))(many),
        lambda run: vmap(grad(lambda x: loss(run, x)))(many),
        lambda run: jvp(grad(lambda x: loss(run, x)), (x,), (x.cos(),)),
    ):
        torch.testing.assert_close(transform(together), transform(alone))


@pytest.mark.parametrize("batch_first", [False, True])
def test_nothing_of_the_padding_is_seen(batch_first: bool) -> None:
    module, x, hx = case(True, batch_first)
    expected = together(module, x, hx)
    by_step = x.transpose(0, 1) if batch_first else x
    for i, n in enumerate(LENGTHS):
        by_step[n:, i] = torch.nan
    x.requires_grad_()
    found = together(module, x, hx)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    gradients = torch.autograd.grad(found[0].sum(), [x, *module.parameters()])
    assert all(g.isfinite().all() for g in gradients)


class Labelled(torch.Tensor):
    """A tensor that is more than one."""


@pytest.mark.parametrize("options", [{}, {"num_layers": 2}, {"num_layers": 2, "dropout": 0.5}])
def test_lengths_may_be_any_tensor(options: dict[str, Any]) -> None:
    """With NaN in the padding: a subclass, not contiguous, or made in inference mode."""
    module = rnn_ext.RNN(3, 5, **options).double()
    x = torch.randn(TIME, len(LENGTHS), 3, dtype=torch.float64)
    for i, n in enumerate(LENGTHS):
        x[n:, i] = torch.nan
    with torch.inference_mode():
        inferred = torch.tensor(LENGTHS)
    plain = torch.tensor(LENGTHS)
    others = [plain.as_subclass(Labelled), plain.repeat_interleave(2)[::2], inferred]
    found = []
    for lengths in (plain, *others):
        outputs, _ = module.eval()(x, lengths=lengths, return_all_layers=True)
        found.append([*outputs, *torch.autograd.grad(outputs[-1].sum(), [*module.parameters()])])
    for results in found[1:]:
        torch.testing.assert_close(results, found[0])
    module.train()
    gradients = torch.autograd.grad(module(x, lengths=plain)[0].sum(), [*module.parameters()])
    assert all(g.isfinite().all() for g in gradients)


def test_lengths_may_be_used_again_before_backward() -> None:
    module, x, hx = case()
    lengths = torch.tensor(LENGTHS)
    output, _ = module(x, hx, lengths=lengths)
    expected = torch.autograd.grad(together(module, x, hx)[0].sum(), [*module.parameters()])
    lengths.fill_(1)
    assert all(map(torch.equal, torch.autograd.grad(output.sum(), [*module.parameters()]), expected))


def test_gradients_of_gradients_do_not_see_the_padding() -> None:
    module, x, hx = case(True)
    found = []
    for filling in (0.0, torch.nan):
        for i, n in enumerate(LENGTHS):
            x[n:, i] = filling
        output, _ = together(module, x.requires_grad_(), hx)
        first = torch.autograd.grad(output.pow(2).sum(), [x, *module.parameters()], create_graph=True)
        found.append(torch.autograd.grad(sum(g.pow(2).sum() for g in first), [*module.parameters()]))
        x = x.detach()
    assert all(map(torch.equal, *found))


@given(st.lists(st.integers(1, 9), max_size=6), st.integers(0, 3), st.booleans())
def test_packing_and_back(lengths: list[int], more: int, by_sequence: bool) -> None:
    time, batch = max(lengths, default=0) + more, len(lengths)
    x = torch.arange(1.0, time * batch * 2 + 1).view(batch, time, 2)
    x = x.transpose(0, 1) if by_sequence else x.transpose(0, 1).contiguous()
    padding = Padding(x, torch.tensor(lengths, dtype=torch.int64))
    packed = padding.pack(x)
    assert padding.batch_sizes.tolist() == [sum(n > t for n in lengths) for t in range(max(lengths, default=0))]
    order = padding.order.tolist()
    assert [lengths[i] for i in order] == sorted(lengths, reverse=True)
    rows = [x[t, i] for t in range(time) for i in order if lengths[i] > t]
    assert torch.equal(packed, torch.stack(rows) if rows else x.new_zeros(0, 2))
    alive = torch.arange(time).unsqueeze(1) < torch.tensor(lengths, dtype=torch.int64)
    assert torch.equal(padding.unpack(packed), x * alive.unsqueeze(2))


def test_rows_anywhere() -> None:
    packing = Packing(torch.tensor([2, 3]), torch.tensor([4, 0]), 1, 6, torch.device("cpu"))
    rows = torch.arange(6.0).unsqueeze(1)
    assert packing.pack(rows).flatten().tolist() == [0, 4, 1, 5, 2]
    assert packing.unpack(packing.pack(rows)).flatten().tolist() == [0, 1, 2, 0, 4, 5]


@pytest.mark.parametrize(
    ("lengths", "states", "message"),
    [
        (torch.tensor([4, 5]), 2, r"lengths must be from 1 to the padded length 4, got \[4, 5\]"),
        (torch.tensor([4, 0]), 2, r"lengths must be from 1 to the padded length 4, got \[4, 0\]"),
        (torch.tensor([4]), 2, r"must be an int64 tensor of shape \(2,\) on the CPU, .* got torch.int64 \(1,\) on cpu"),
        (torch.tensor([4.0, 1.0]), 2, r"got torch.float32 \(2,\) on cpu"),
        (torch.tensor([4, 1]), 3, r"hx must have states of 2 sequences, got \(1, 3, 5\)"),
    ],
)
def test_what_does_not_fit(lengths: Tensor, states: int, message: str) -> None:
    weights = [[torch.randn(5, 3), torch.randn(5, 5)]]
    with pytest.raises(RuntimeError, match=message):
        rnn_ext.functional.rnn(torch.randn(4, 2, 3), weights, torch.zeros(1, states, 5), lengths=lengths)
