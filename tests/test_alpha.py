"""alpha: leaky units, against the definition in a loop over time."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import assert_as_accurate, assert_same, call_ragged, cell_loop, ragged_cell_loop
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import rnn_ext
from rnn_ext import functional

HIDDEN, BATCH = 5, 3


def case(time: int, alpha: float, **options: Any) -> tuple[rnn_ext.RNN, Tensor, Tensor, list[Tensor]]:
    """A module of two layers, its input, states before, and what stays of a state in each layer."""
    module = rnn_ext.RNN(2, HIDDEN, 2, alpha=alpha, **options).double()
    directions = 1 + module.bidirectional
    x = torch.randn(time, BATCH, 2, dtype=torch.float64, requires_grad=True)
    hx = torch.randn(2 * directions, BATCH, HIDDEN, dtype=torch.float64, requires_grad=True)
    return module, x, hx, [torch.full((time, BATCH, directions * HIDDEN), 1 - alpha, dtype=torch.float64)] * 2


@settings(max_examples=40)
@given(st.integers(1, 9), st.floats(0.01, 0.99), st.booleans(), st.sampled_from(["tanh", "relu"]), st.integers(0, 1000))
def test_is_the_definition(time: int, alpha: float, bidirectional: bool, nonlinearity: str, random_seed: int) -> None:
    torch.manual_seed(random_seed)
    module, x, hx, leaks = case(time, alpha, bidirectional=bidirectional, nonlinearity=nonlinearity)
    for training in (True, False):
        assert_same(module, x, hx, module.train(training)(x, hx), cell_loop(module, x, hx, leaks))
    with torch.no_grad():
        torch.testing.assert_close(module(x, hx), cell_loop(module, x, hx, leaks))


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("time", [1, 7])
@pytest.mark.parametrize("kind", ["reset", "checkpoints", "recurrent dropout", "zoneout", "expected zoneout"])
def test_beside(kind: str, time: int, bidirectional: bool) -> None:
    alpha, p = 0.3, 0.4
    options: dict[str, Any] = {"zoneout": p} if "zoneout" in kind else {}
    if kind == "recurrent dropout":
        options["recurrent_dropout"] = p
    module, x, hx, leaks = case(time, alpha, bidirectional=bidirectional, **options)
    expected: dict[str, Any] = {"leaks": leaks}
    call: dict[str, Any] = {}
    torch.manual_seed(7)
    if kind == "reset":
        call["reset"] = expected["reset"] = torch.rand(time, BATCH) < 0.4
    elif kind == "checkpoints":
        call["checkpoint_every"] = 3
    elif kind == "recurrent dropout":
        ones = torch.ones(1 + bidirectional, BATCH, HIDDEN, dtype=torch.float64)
        expected["masks"] = [F.dropout(ones, p) for _ in leaks]
    elif kind == "zoneout":
        kept = [(torch.rand(leak.shape, dtype=torch.float32) < p).double() for leak in leaks]
        expected["leaks"] = [keep + (1 - keep) * (1 - alpha) for keep in kept]
    else:
        module.eval()
        expected["leaks"] = [p + (1 - p) * leak for leak in leaks]
    torch.manual_seed(7)
    assert_same(module, x, hx, module(x, hx, **call), cell_loop(module, x, hx, **expected))


@pytest.mark.parametrize("kind", ["packed", "lengths", "nested"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_ragged(bidirectional: bool, kind: str) -> None:
    module, x, hx, leaks = case(6, 0.3, bidirectional=bidirectional)
    lengths = [6, 4, 1]
    expected = ragged_cell_loop(module, x, hx, lengths, leaks)
    assert_same(module, x, hx, call_ragged(kind, module, x, hx, lengths), expected)


def test_second_order() -> None:
    module, x, hx, _ = case(3, 0.3, bidirectional=True)
    assert torch.autograd.gradgradcheck(lambda x, hx, *_: module(x, hx), (x, hx, *module.parameters()))


def test_a_step_of_the_input_is_followed_exponentially() -> None:
    """Without recurrent weights, ``tau dh/dt = -h + u`` in steps of dt."""
    module = rnn_ext.RNN(1, 1, nonlinearity="relu", bias=False, alpha=0.2).double()
    nn.init.ones_(module.weight_ih_l0)
    nn.init.zeros_(module.weight_hh_l0)
    output, _ = module(torch.full((50, 1, 1), 3.0).double())
    steps = torch.arange(1, 51, dtype=torch.float64).view(-1, 1, 1)
    torch.testing.assert_close(output, 3 * (1 - 0.8**steps))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("alpha", [0.3, 0.9])
def test_other_dtypes(alpha: float, dtype: torch.dtype) -> None:
    """As accurate as the loop in the same dtype, from the same numbers."""
    module, x, hx, leaks = case(6, alpha, bidirectional=True)
    module = module.to(dtype)
    x, hx = (t.detach().to(dtype).requires_grad_() for t in (x, hx))
    exact = copy.deepcopy(module).double()
    leaks = [leak.to(dtype) for leak in leaks]

    def results(run: Any, module: nn.Module, x: Tensor, hx: Tensor) -> list[Tensor]:
        output, h_n = run(module, x, hx)
        return [output, h_n, *torch.autograd.grad(output.sum() + h_n.sum(), [x, hx, *module.parameters()])]

    def loop(module: rnn_ext.RNN, x: Tensor, hx: Tensor) -> tuple[Tensor, Tensor]:
        return cell_loop(module, x, hx, [leak.to(x.dtype) for leak in leaks])

    double = [t.detach().double().requires_grad_() for t in (x, hx)]
    found = results(lambda module, x, hx: module(x, hx), module, x, hx)
    for ours, theirs, right in zip(found, results(loop, module, x, hx), results(loop, exact, *double), strict=True):
        assert_as_accurate(ours, theirs, right, f"alpha = {alpha}")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_leaves_it_in_float32(dtype: torch.dtype) -> None:
    module, x = rnn_ext.RNN(2, HIDDEN, 2, alpha=0.3), torch.randn(6, BATCH, 2)
    results = []
    for enabled in (True, False):
        with torch.autocast("cpu", dtype, enabled=enabled):
            output, h_n = module(x)
            results.append([output, h_n, *torch.autograd.grad(output.sin().sum(), list(module.parameters()))])
    assert all(map(torch.equal, *results))
    with torch.autocast("cpu", dtype):
        assert module(x.to(dtype))[0].dtype == torch.float32  # what a layer before it gives


@pytest.mark.parametrize(("dtype", "least"), [(torch.bfloat16, 2.0**-9), (torch.float16, 2.0**-12)])
def test_an_alpha_that_16_bits_do_not_hold(dtype: torch.dtype, least: float) -> None:
    x = torch.ones(3, 1, 2, dtype=dtype)
    with pytest.raises(ValueError, match=f"alpha = {least} is nothing in {dtype}, where 1 - alpha is 1; use float32"):
        rnn_ext.RNN(2, HIDDEN, alpha=least).to(dtype)(x)
    assert rnn_ext.RNN(2, HIDDEN, alpha=1.01 * least).to(dtype)(x)[0].any()


def test_an_empty_batch() -> None:
    output, h_n = rnn_ext.RNN(2, HIDDEN, alpha=0.3)(torch.randn(3, 0, 2), lengths=torch.zeros(0, dtype=torch.int64))
    assert output.shape == (3, 0, HIDDEN)
    assert h_n.shape == (1, 0, HIDDEN)


def test_compiled_in_one_graph() -> None:
    module = rnn_ext.RNN(2, HIDDEN, 2, bidirectional=True, alpha=0.3)
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="aot_eager")
    for time, batch in ((4, 3), (7, 2)):
        x, results = torch.randn(time, batch, 2), []
        for function in (compiled, module):
            output, h_n = function(x)
            results.append((output, h_n, *torch.autograd.grad(output.sin().sum(), list(module.parameters()))))
        torch.testing.assert_close(*results)


def test_of_a_module() -> None:
    module = rnn_ext.RNN(2, HIDDEN, alpha=0.25)
    assert "alpha=0.25" in repr(module) and "alpha" not in repr(rnn_ext.RNN(2, HIDDEN))
    assert copy.deepcopy(module).alpha == 0.25 == rnn_ext.RNN(2, HIDDEN, alpha=np.float32(0.25)).alpha
    assert module.state_dict().keys() == nn.RNN(2, HIDDEN).state_dict().keys()
    assert rnn_ext.from_torch(nn.RNN(2, HIDDEN)).alpha == 1
    with pytest.raises(ValueError, match=r"torch.nn.RNN has no alpha, but 1 has alpha=0.25; set it to 1 first"):
        rnn_ext.to_torch(nn.Sequential(nn.Identity(), module))
    x = torch.randn(4, 3, 2)
    output, _ = module(x)
    module.alpha = 1.0
    torch.testing.assert_close(module(x)[0], rnn_ext.to_torch(copy.deepcopy(module))(x)[0])
    assert not torch.allclose(module(x)[0], output)


@pytest.mark.parametrize("alpha", [0, -0.1, 1.5, "a", True, None])
def test_bad_values(alpha: Any) -> None:
    message = f"alpha must be a number above 0 and at most 1, what a step renews of a state, got {alpha!r}"
    with pytest.raises(ValueError, match=message):
        rnn_ext.RNN(2, HIDDEN, alpha=alpha)
    with pytest.raises(ValueError, match=message):
        functional.rnn(torch.randn(4, 3, 2), [[torch.randn(5, 2), torch.randn(5, 5)]], alpha=alpha)
