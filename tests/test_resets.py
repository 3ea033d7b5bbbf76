"""Resets within a sequence, and recurrent dropout: what changes between one step and the next."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import cell_loop
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import rnn_ext
from rnn_ext import ops


def episodes(starts: list[bool]) -> list[tuple[int, int]]:
    """First step and end of each, where ``starts`` says at which steps one begins."""
    edges = [0, *(t for t, start in enumerate(starts) if start and t > 0), len(starts)]
    return list(itertools.pairwise(edges))


def one_by_one(module: nn.Module, x: Tensor, hx: Tensor, reset: Tensor, lengths: list[int]) -> tuple[Tensor, Tensor]:
    """Every episode of every row as a call of its own, ``(T, B, features)``."""
    ahead = torch.arange(hx.shape[0]) % (2 if module.bidirectional else 1) == 0
    ahead = ahead.view(-1, 1, 1)
    outputs, states = [], []
    for b, length in enumerate(lengths):
        row, found = [], []
        pieces = episodes(reset[:length, b].tolist())
        for begin, end in pieces:
            # The given states are before the first step of a forward direction, after the last of a reversed one.
            given_states = (ahead & bool(begin == 0 and not reset[0, b])) | (~ahead & (end == length))
            output, h_n = module(x[begin:end, b : b + 1], torch.where(given_states, hx[:, b : b + 1], 0.0))
            row.append(output)
            found.append(h_n)
        outputs.append(F.pad(torch.cat(row), (0, 0, 0, 0, 0, len(x) - length)))
        states.append(torch.where(ahead, found[-1], found[0]))
    return torch.cat(outputs, 1), torch.cat(states, 1)


@given(
    st.integers(1, 9),
    st.integers(1, 4),
    st.sampled_from([1, 3, 16]),
    st.integers(1, 2),
    st.booleans(),
    st.sampled_from(["padded", "lengths", "batch first", "checkpoints"]),
    st.integers(0, 1000),
)
def test_reset_begins_an_episode(
    time: int, batch: int, hidden: int, layers: int, bidirectional: bool, kind: str, random_seed: int
) -> None:
    torch.manual_seed(random_seed)
    batch_first = kind == "batch first"
    module = rnn_ext.RNN(3, hidden, layers, bidirectional=bidirectional, batch_first=batch_first).double()
    oracle = nn.RNN(3, hidden, layers, bidirectional=bidirectional).double()
    oracle.load_state_dict(module.state_dict())
    x = torch.randn(time, batch, 3, dtype=torch.float64, requires_grad=True)
    hx = torch.randn(layers * (1 + bidirectional), batch, hidden, dtype=torch.float64, requires_grad=True)
    reset = torch.rand(time, batch) < 0.4
    lengths = torch.randint(1, time + 1, (batch,)) if kind == "lengths" else torch.full((batch,), time)
    expected = one_by_one(oracle, x, hx, reset, lengths.tolist())
    options: dict[str, Any] = {}
    if kind == "lengths":
        options["lengths"] = lengths
    if kind == "checkpoints":
        options["checkpoint_every"] = 2
    if batch_first:
        output, h_n = module(x.transpose(0, 1), hx, reset=reset.t())
        output = output.transpose(0, 1)
    else:
        output, h_n = module(x, hx, reset=reset, **options)
    torch.testing.assert_close((output, h_n), expected)
    grads = [
        torch.autograd.grad(y.sin().sum() + last.cos().sum(), [x, hx, *m.parameters()])
        for m, (y, last) in ((module, (output, h_n)), (oracle, expected))
    ]
    torch.testing.assert_close(*grads)
    with torch.no_grad():
        torch.testing.assert_close(
            module(x.transpose(0, 1) if batch_first else x, reset=reset.t() if batch_first else reset, **options)[1],
            one_by_one(oracle, x, torch.zeros_like(hx), reset, lengths.tolist())[1],
        )


def test_reset_of_an_unbatched_sequence() -> None:
    module = rnn_ext.RNN(3, 5)
    x, reset = torch.randn(4, 3), torch.tensor([False, False, True, False])
    output, h_n = module(x, reset=reset)
    torch.testing.assert_close(output, torch.cat([module(x[:2])[0], module(x[2:])[0]]))
    assert torch.equal(h_n[0], output[-1])


@pytest.mark.parametrize("given", [False, True])
def test_reset_is_moved_to_the_input(given: bool) -> None:
    module, x = rnn_ext.RNN(3, 5, device="meta"), torch.empty(4, 2, 3, device="meta")
    hx = torch.empty(1, 2, 5, device="meta") if given else None
    output, h_n = module(x, hx, reset=torch.zeros(4, 2, dtype=torch.bool))
    assert output.shape == (4, 2, 5)
    assert h_n.shape == (1, 2, 5)


def test_a_state_that_went_wrong_ends_with_its_episode() -> None:
    u = torch.zeros(4, 2, 5)
    u[1, 0] = torch.nan
    reset = torch.zeros(4, 2, dtype=torch.bool)
    reset[2, 0] = True
    h, _ = ops.recurrence(u, None, torch.eye(5), reset=reset)
    assert h[1, 0].isnan().all()
    assert not h[2:].isnan().any()


@pytest.mark.parametrize(
    ("reset", "message"),
    [
        ([[True] * 2] * 4, r"reset must be a bool tensor of shape \(4, 2\), one entry for each step, got list"),
        (torch.zeros(4, 2), r"got torch.float32 \(4, 2\)"),
        (torch.zeros(2, 4, dtype=torch.bool), r"got torch.bool \(2, 4\)"),
    ],
)
def test_bad_resets(reset: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rnn_ext.RNN(3, 5)(torch.randn(4, 2, 3), reset=reset)


def test_resets_where_they_do_not_belong() -> None:
    module, reset = rnn_ext.RNN(3, 5), torch.zeros(2, 1, dtype=torch.bool)
    with pytest.raises(ValueError, match="with lengths, not a PackedSequence"):
        module(nn.utils.rnn.pack_sequence([torch.randn(2, 3)]), reset=reset)
    with pytest.raises(ValueError, match="with lengths, not a nested tensor"):
        module(torch.nested.nested_tensor([torch.randn(2, 3)], layout=torch.jagged), reset=reset)


def test_vmap_over_resets() -> None:
    u, w = torch.randn(4, 2, 5), torch.randn(5, 5)
    resets = torch.rand(3, 4, 2) < 0.5

    def states(reset: Tensor, w: Tensor = w) -> Tensor:
        return ops.recurrence(u, None, w, reset=reset)[0]

    torch.testing.assert_close(torch.func.vmap(states)(resets), torch.stack([states(r) for r in resets]))
    with pytest.raises(ValueError, match="vmap over both reset and the weights"):
        torch.func.vmap(states)(resets, torch.stack([w] * 3))


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("time", [1, 6])
@pytest.mark.parametrize("kind", ["padded", "packed", "checkpoints", "no gradient"])
def test_recurrent_dropout(kind: str, time: int, bidirectional: bool) -> None:
    directions, batch, p = 1 + bidirectional, 3, 0.4
    module = rnn_ext.RNN(2, 5, 2, bidirectional=bidirectional, recurrent_dropout=p).double()
    x = torch.randn(time, batch, 2, dtype=torch.float64)
    hx = torch.randn(2 * directions, batch, 5, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(7)
    masks = [F.dropout(torch.ones(directions, batch, 5, dtype=torch.float64), p) for _ in range(2)]
    expected = cell_loop(module, x, hx, masks=masks)
    torch.manual_seed(7)
    if kind == "packed":
        packed, h_n = module(nn.utils.rnn.pack_padded_sequence(x, torch.full((batch,), time)), hx)
        output = nn.utils.rnn.pad_packed_sequence(packed)[0]
    elif kind == "no gradient":
        with torch.no_grad():
            output, h_n = module(x, hx)
    else:
        output, h_n = module(x, hx, checkpoint_every=4 if kind == "checkpoints" else None)
    torch.testing.assert_close((output, h_n), expected)
    if kind == "no gradient":
        return
    inputs = [hx, *module.parameters()]
    grads = [torch.autograd.grad(y.sin().sum() + last.sum(), inputs) for y, last in ((output, h_n), expected)]
    torch.testing.assert_close(*grads)
    assert not torch.equal(module.train()(x, hx)[1], module(x, hx)[1])  # a new draw each time
    torch.testing.assert_close(module.eval()(x, hx), cell_loop(module, x, hx, masks=[torch.ones(directions, 1, 1)] * 2))


def test_recurrent_dropout_of_a_module() -> None:
    module = rnn_ext.RNN(2, 5, recurrent_dropout=0.25)
    assert "recurrent_dropout=0.25" in repr(module)
    assert copy.deepcopy(module).recurrent_dropout == 0.25
    assert module.state_dict().keys() == nn.RNN(2, 5).state_dict().keys()
    assert rnn_ext.from_torch(nn.RNN(2, 5)).recurrent_dropout == 0
    with pytest.raises(ValueError, match=r"but 1 has recurrent_dropout=0.25; set it to 0 first"):
        rnn_ext.to_torch(nn.Sequential(nn.Identity(), module))
    assert isinstance(module, rnn_ext.RNN)


@pytest.mark.parametrize("p", [-0.1, 1.5, "a", True])
def test_bad_probabilities(p: Any) -> None:
    with pytest.raises(ValueError, match=f"recurrent_dropout must be a number from 0 to 1, .* got {p!r}"):
        rnn_ext.RNN(2, 5, recurrent_dropout=p)


def test_a_mask_is_a_constant() -> None:
    mask = torch.ones(1, 2, 5, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"mask must be a constant.*pass mask.detach\(\)"):
        ops.recurrence(torch.randn(3, 2, 5), None, torch.randn(5, 5), mask=mask)


@pytest.mark.parametrize("kind", ["reset", "recurrent dropout"])
def test_compiled_in_one_graph(kind: str) -> None:
    module = rnn_ext.RNN(2, 5, 2, bidirectional=True, recurrent_dropout=0.5 if kind != "reset" else 0.0)
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="aot_eager")
    for time, batch in ((4, 3), (7, 2)):
        x = torch.randn(time, batch, 2)
        options = {"reset": torch.rand(time, batch) < 0.5} if kind == "reset" else {}
        results = []
        for function in (compiled, module):
            torch.manual_seed(1)
            output, h_n = function(x, **options)
            results.append((output, h_n, *torch.autograd.grad(output.sin().sum(), list(module.parameters()))))
        torch.testing.assert_close(*results)
