"""Zoneout: units that keep their state, against the definition in a loop over time."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_same, call_ragged, cell_loop, ragged_cell_loop
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import rnn_ext
from rnn_ext import functional, ops

P, HIDDEN = 0.4, 5


def drawn(shape: tuple[int, ...]) -> Tensor:
    """As zoneout of probability P draws it."""
    return (torch.rand(shape, dtype=torch.float32) < P).double()


def case(
    time: int, bidirectional: bool, layers: int = 2, **options: Any
) -> tuple[rnn_ext.RNN, Tensor, Tensor, tuple[int, ...]]:
    module = rnn_ext.RNN(2, HIDDEN, layers, bidirectional=bidirectional, zoneout=P, **options).double()
    directions, batch = 1 + bidirectional, 3
    x = torch.randn(time, batch, 2, dtype=torch.float64, requires_grad=True)
    hx = torch.randn(layers * directions, batch, HIDDEN, dtype=torch.float64, requires_grad=True)
    return module, x, hx, (time, batch, directions * HIDDEN)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("time", [1, 6])
@pytest.mark.parametrize("kind", ["padded", "relu", "no gradient", "reset", "batch first"])
def test_training(kind: str, time: int, bidirectional: bool) -> None:
    module, x, hx, shape = case(
        time, bidirectional, nonlinearity="relu" if kind == "relu" else "tanh", batch_first=kind == "batch first"
    )
    options: dict[str, Any] = {"reset": torch.rand(shape[:2]) < 0.4} if kind == "reset" else {}
    torch.manual_seed(7)
    expected = cell_loop(module, x, hx, [drawn(shape) for _ in range(2)], **options)
    torch.manual_seed(7)
    if kind == "batch first":
        output, h_n = module(x.transpose(0, 1), hx)
        assert_same(module, x, hx, (output.transpose(0, 1), h_n), expected)
        return
    with torch.set_grad_enabled(kind != "no gradient"):
        found = module(x, hx, **options)
    if kind == "no gradient":
        torch.testing.assert_close(found, expected)
    else:
        assert_same(module, x, hx, found, expected)
        assert not torch.equal(module(x, hx)[1], found[1])  # a new draw each time


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("time", [1, 6])
def test_eval_is_the_expectation(time: int, bidirectional: bool, nonlinearity: str) -> None:
    module, x, hx, shape = case(time, bidirectional, nonlinearity=nonlinearity)
    expectation = torch.full(shape, P, dtype=torch.float64)
    assert_same(module, x, hx, module.eval()(x, hx), cell_loop(module, x, hx, [expectation] * 2))
    with torch.no_grad():
        torch.testing.assert_close(module(x, hx), cell_loop(module, x, hx, [expectation] * 2))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", ["packed", "lengths", "nested"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_ragged(bidirectional: bool, kind: str, training: bool) -> None:
    module, x, hx, shape = case(6, bidirectional, layers=1)
    module.train(training)
    lengths = [6, 4, 1]
    packed = nn.utils.rnn.pack_padded_sequence(x, torch.tensor(lengths))
    torch.manual_seed(7)
    # All of them run as packed sequences, and draw for no step that there is not.
    z = drawn((len(packed.data), shape[2])) if training else torch.full(shape, P)
    if training:
        z = nn.utils.rnn.pad_packed_sequence(nn.utils.rnn.PackedSequence(z, packed.batch_sizes))[0]
    expected = ragged_cell_loop(module, x, hx, lengths, [z])
    torch.manual_seed(7)
    assert_same(module, x, hx, call_ragged(kind, module, x, hx, lengths), expected)


def chunks(time: int, every: int, direction: int) -> list[slice]:
    return [slice(i, min(i + every, time)) for i in range(0, time, every)][::direction]


@pytest.mark.parametrize("bidirectional", [False, True])
def test_checkpoints(bidirectional: bool) -> None:
    """Drawn chunk by chunk; were backward's draws others, the gradients would not be those of the loss."""
    time, every = 7, 3
    module, x, hx, shape = case(time, bidirectional)
    leaks = [torch.zeros(shape, dtype=torch.float64) for _ in range(2)]
    torch.manual_seed(7)
    if bidirectional:
        for leak in leaks:
            for d, way in enumerate((1, -1)):
                for part in chunks(time, every, way):
                    columns = slice(d * HIDDEN, (d + 1) * HIDDEN)
                    leak[part, :, columns] = drawn((*leak[part].shape[:2], HIDDEN))
    else:
        for part in chunks(time, every, 1):
            for leak in leaks:
                leak[part] = drawn(tuple(leak[part].shape))
    torch.manual_seed(7)
    found = module(x, hx, checkpoint_every=every)
    assert_same(module, x, hx, found, cell_loop(module, x, hx, leaks))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("time", [1, 6])
def test_beside_recurrent_dropout(time: int, training: bool) -> None:
    module, x, hx, shape = case(time, True, recurrent_dropout=0.3)
    ones = torch.ones(2, 3, HIDDEN, dtype=torch.float64)
    torch.manual_seed(7)
    masks = [F.dropout(ones, 0.3, training) for _ in range(2)]
    leaks = [drawn(shape) if training else torch.full(shape, P, dtype=torch.float64) for _ in range(2)]
    torch.manual_seed(7)
    assert_same(module, x, hx, module.train(training)(x, hx), cell_loop(module, x, hx, leaks, masks))


@settings(max_examples=30)
@given(st.integers(1, 6), st.integers(1, 4), st.booleans(), st.booleans(), st.integers(0, 1000))
def test_second_order(time: int, hidden: int, bidirectional: bool, training: bool, random_seed: int) -> None:
    """Through the layer's own node, whose backward makes the projection again in eval mode."""
    torch.manual_seed(random_seed)
    module = rnn_ext.RNN(2, hidden, bidirectional=bidirectional, zoneout=P).double().train(training)
    x = torch.randn(time, 3, 2, dtype=torch.float64, requires_grad=True)
    hx = torch.randn(1 + bidirectional, 3, hidden, dtype=torch.float64, requires_grad=True)
    shape = (time, 3, (1 + bidirectional) * hidden)
    inputs = [x, hx, *module.parameters()]

    def second(run: Callable[[], tuple[Tensor, Tensor]]) -> tuple[Tensor, ...]:
        torch.manual_seed(random_seed)
        output, h_n = run()
        first = torch.autograd.grad(output.pow(3).sum() + h_n.sin().sum(), inputs, create_graph=True)
        return torch.autograd.grad(sum(g.pow(2).sum() for g in first), inputs)

    def definition() -> tuple[Tensor, Tensor]:
        return cell_loop(module, x, hx, [drawn(shape) if training else torch.full(shape, P, dtype=torch.float64)])

    torch.testing.assert_close(second(lambda: module(x, hx)), second(definition))


@pytest.mark.parametrize("training", [True, False])
def test_transforms(training: bool) -> None:
    """Per-sample gradients and a tangent; a draw of zoneout may be another for each sample."""
    module, x, _, shape = case(6, True)
    module.train(training)
    weights = {n: p.detach() for n, p in module.named_parameters()}

    def loss(weights: dict[str, Tensor], row: Tensor) -> Tensor:
        return torch.func.functional_call(module, weights, row.unsqueeze(1))[0].pow(2).sum()

    each = torch.func.vmap(torch.func.grad(loss), (None, 1), randomness="different")(weights, x.detach())
    if not training:
        for i in range(x.shape[1]):
            own = torch.func.grad(loss)(weights, x[:, i].detach())
            torch.testing.assert_close({n: g[i] for n, g in each.items()}, own)
        return
    # Every row alike, and every draw: the gradients of the rows are.
    alike = x[:, :1].detach().expand_as(x)
    same = torch.func.vmap(torch.func.grad(loss), (None, 1), randomness="same")(weights, alike)
    other = torch.func.vmap(torch.func.grad(loss), (None, 1), randomness="different")(weights, alike)
    for name in weights:
        torch.testing.assert_close(same[name][0], same[name][2])
    assert not torch.allclose(other["weight_hh_l0"][0], other["weight_hh_l0"][2])
    values = torch.randn_like(x)
    torch.manual_seed(7)
    _, tangent = torch.func.jvp(lambda x: module(x)[0], (x.detach(),), (values,))
    leaks = (torch.manual_seed(7), [drawn(shape) for _ in range(2)])[1]
    zeros = torch.zeros(4, 3, HIDDEN, dtype=torch.float64)
    expected = torch.func.jvp(lambda x: cell_loop(module, x, zeros, leaks)[0], (x.detach(),), (values,))[1]
    torch.testing.assert_close(tangent, expected)


@pytest.mark.parametrize("p", [0.0, 1.0])
@pytest.mark.parametrize("training", [True, False])
def test_the_ends_of_the_range(training: bool, p: float) -> None:
    module = rnn_ext.RNN(2, HIDDEN, zoneout=p).train(training)
    x, hx = torch.randn(4, 3, 2), torch.randn(1, 3, HIDDEN)
    output, h_n = module(x, hx)
    if p:
        assert torch.equal(output, hx.expand_as(output))
        (grad,) = torch.autograd.grad(h_n.sum(), module.weight_hh_l0)
        assert not grad.any()
    else:
        module.zoneout = 0
        assert torch.equal(output, module(x, hx)[0])


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("time", [1, 6])
def test_autocast(time: int, training: bool) -> None:
    module = rnn_ext.RNN(2, HIDDEN, 2, zoneout=P).train(training)
    x = torch.randn(time, 3, 2)
    with torch.autocast("cpu", torch.bfloat16):
        torch.manual_seed(7)
        output, _ = module(x)
        assert output.dtype == torch.bfloat16
        output.float().sin().sum().backward()
    torch.manual_seed(7)
    torch.testing.assert_close(output.float(), module(x)[0], rtol=0.05, atol=0.05)
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in module.parameters())


@pytest.mark.parametrize("training", [True, False])
def test_compiled_in_one_graph(training: bool) -> None:
    module = rnn_ext.RNN(2, HIDDEN, 2, bidirectional=True, zoneout=P).train(training)
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="aot_eager")
    for time, batch in ((4, 3), (7, 2)):
        x = torch.randn(time, batch, 2)
        results = []
        for function in (compiled, module):
            torch.manual_seed(1)
            output, h_n = function(x)
            results.append((output, h_n, *torch.autograd.grad(output.sin().sum(), list(module.parameters()))))
        torch.testing.assert_close(*results)


def test_of_a_module() -> None:
    module = rnn_ext.RNN(2, HIDDEN, zoneout=0.25)
    assert "zoneout=0.25" in repr(module) and "recurrent_dropout" not in repr(module)
    assert copy.deepcopy(module).zoneout == 0.25
    assert module.state_dict().keys() == nn.RNN(2, HIDDEN).state_dict().keys()
    assert rnn_ext.from_torch(nn.RNN(2, HIDDEN)).zoneout == 0
    with pytest.raises(ValueError, match=r"no zoneout, but 1 has zoneout=0.25; set it to 0 first"):
        rnn_ext.to_torch(nn.Sequential(nn.Identity(), module))
    assert isinstance(module, rnn_ext.RNN)


@pytest.mark.parametrize("p", [-0.1, 1.5, "a", True])
def test_bad_probabilities(p: Any) -> None:
    message = f"zoneout must be a number from 0 to 1, the probability of a unit keeping its state, got {p!r}"
    with pytest.raises(ValueError, match=message):
        rnn_ext.RNN(2, HIDDEN, zoneout=p)
    with pytest.raises(ValueError, match=message):
        functional.rnn(torch.randn(4, 3, 2), [[torch.randn(5, 2), torch.randn(5, 5)]], zoneout=p)


def test_a_leak_is_a_constant() -> None:
    leak = torch.ones(3, 2, 5, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"leak must be a constant.*pass leak.detach\(\)"):
        ops.recurrence(torch.randn(3, 2, 5), None, torch.randn(5, 5), leak=leak)


def test_vmap_over_leaks() -> None:
    u, w, leaks = torch.randn(4, 2, 5), torch.randn(5, 5), torch.rand(3, 4, 2, 5)

    def states(leak: Tensor, w: Tensor = w) -> Tensor:
        return ops.recurrence(u, None, w, leak=leak)[0]

    torch.testing.assert_close(torch.func.vmap(states)(leaks), torch.stack([states(z) for z in leaks]))
    weights = torch.randn(3, 5, 5)
    expected = torch.stack([states(z, w) for z, w in zip(leaks, weights, strict=True)])
    torch.testing.assert_close(torch.func.vmap(states)(leaks, weights), expected)
