"""Lower and higher precision: what torch.nn's modules cast under autocast, ours cast; conversions; loss scaling."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import rnn_ext

LOW = [torch.bfloat16, torch.float16]
low = pytest.mark.parametrize("low", LOW, ids=str)
pytestmark = pytest.mark.filterwarnings("ignore:rnn_ext has no kernel")


def pair(kind: str, *args: Any, **kwargs: Any) -> tuple[nn.Module, nn.Module]:
    ours, theirs = (getattr(library, kind)(*args, **kwargs) for library in (rnn_ext, nn))
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def outputs(result: Any) -> list[Tensor]:
    result = result if isinstance(result, tuple) and not isinstance(result, PackedSequence) else (result,)
    return [r.data if isinstance(r, PackedSequence) else r for r in result]


def cast_as(module: nn.Module, x: Any, hx: Tensor | None, low: torch.dtype) -> Any:
    """The dtypes of outputs and gradients under autocast; or that it cannot be."""
    try:
        with torch.autocast("cpu", low):
            results = outputs(module(x, hx))
        parameters = list(module.parameters())
        return [r.dtype for r in (*results, *torch.autograd.grad(sum(r.float().sum() for r in results), parameters))]
    except RuntimeError:  # dtypes that torch's refuses to mix, ours must refuse
        return RuntimeError


@low
@pytest.mark.parametrize("kind", ["RNN", "RNNCell"])
def test_autocast_casts_what_torch_casts(kind: str, low: torch.dtype) -> None:
    ran = 0
    for weights in (torch.float32, torch.float64, low):
        ours, theirs = (m.to(weights) for m in pair(kind, 3, 4))
        for inputs in (torch.float32, torch.float64, low):
            x = torch.randn(*((2, 3) if kind == "RNNCell" else (5, 2, 3)), dtype=inputs)
            for states in (None, torch.float32, torch.float64, low):
                hx = (
                    None if states is None else torch.zeros(*((2, 4) if kind == "RNNCell" else (1, 2, 4)), dtype=states)
                )
                expected = cast_as(theirs, x, hx, low)
                assert cast_as(ours, x, hx, low) == expected, (weights, inputs, states)
                ran += expected is not RuntimeError
    assert ran >= 14  # torch mixes no double with a lower precision


@low
@pytest.mark.parametrize("kind", ["dense", "packed", "cell"])
def test_autocast_gives_what_torch_gives(kind: str, low: torch.dtype) -> None:
    if kind == "cell":
        ours, theirs = pair("RNNCell", 3, 4)
        x: Any = torch.randn(2, 3)
    else:
        ours, theirs = pair("RNN", 3, 4, 2, bidirectional=True)
        x = pack_sequence([torch.randn(5, 3), torch.randn(2, 3)]) if kind == "packed" else torch.randn(5, 2, 3)
    grads = []
    for module in (ours, theirs):
        with torch.autocast("cpu", low):
            results = outputs(module(x))
            with torch.autocast("cpu", enabled=False):
                assert outputs(module(x))[0].dtype == torch.float32
        assert results[0].dtype == low
        grads.append((results, torch.autograd.grad(results[0].float().pow(2).sum(), list(module.parameters()))))
    tolerance = 16 * torch.finfo(low).eps
    torch.testing.assert_close(*grads, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("method", ["half", "bfloat16", "float", "double"])
def test_conversions(method: str) -> None:
    ours, theirs = (getattr(m, method)() for m in pair("RNN", 3, 4, 2, "relu", bidirectional=True))
    dtype = theirs.weight_hh_l0.dtype
    assert {p.dtype for p in ours.parameters()} == {w.dtype for w in ours._flat_weights} == {dtype}
    x = torch.randn(5, 2, 3, dtype=dtype)
    grads = [torch.autograd.grad(m(x)[0].pow(2).sum(), list(m.parameters())) for m in (ours, theirs)]
    tolerance = 16 * torch.finfo(dtype).eps
    for result in ((ours(x), theirs(x)), grads):
        torch.testing.assert_close(*result, rtol=tolerance, atol=tolerance)
    # And back: rounded once, then exact.
    torch.testing.assert_close(ours.float()(x.float()), theirs.float()(x.float()))


def test_gradient_scaler() -> None:
    model = rnn_ext.RNN(3, 8, bidirectional=True)
    optimizer, scaler = torch.optim.SGD(model.parameters(), lr=0.05), torch.amp.GradScaler("cpu", init_scale=2.0**10)
    x, target = torch.randn(6, 4, 3), torch.randn(6, 4, 16).tanh()

    def step(factor: float = 1.0) -> float:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16):
            loss = nn.functional.mse_loss(model(x)[0].float(), target)
        scaler.scale(loss * factor).backward()
        scaler.step(optimizer)
        scaler.update()
        return loss.item()

    losses = [step() for _ in range(20)]
    assert losses[-1] < 0.95 * losses[0]
    before, scale = [p.clone() for p in model.parameters()], scaler.get_scale()
    step(torch.inf)
    assert scaler.get_scale() == scale / 2
    torch.testing.assert_close(list(model.parameters()), before, rtol=0, atol=0)


@pytest.mark.parametrize("options", [{}, {"zoneout": 0.3}, {"alpha": 0.3}, {"bidirectional": True, "alpha": 0.3}])
def test_backward_under_autocast(options: dict[str, Any]) -> None:
    """Of what was made without it: the products of backward stay in the dtype that they are given."""
    module, x = rnn_ext.RNN(3, 5, **options), torch.randn(6, 2, 3)
    results = []
    for enabled in (True, False):
        torch.manual_seed(0)
        output, _ = module(x)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            results.append(torch.autograd.grad(output, list(module.parameters()), torch.ones_like(output)))
    assert all(map(torch.equal, *results))
