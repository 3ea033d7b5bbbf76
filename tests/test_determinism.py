"""``torch.use_deterministic_algorithms(True)``: nothing raises, and the same call gives the same bits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils._python_dispatch import TorchDispatchMode

import rnn_ext

LENGTHS = torch.tensor([3, 5, 1])
PACKED = pack_sequence([torch.zeros(int(n), 3) for n in LENGTHS], enforce_sorted=False)
KINDS = ("dense", "lengths", "packed")

# What raises on CUDA in that mode (documentation of torch.use_deterministic_algorithms), of all that could stand in a
# recurrent layer or its derivatives. Of floating numbers, that is: sums of sizes are whole numbers on the CPU.
RAISES_ON_CUDA = {"put_", "histc", "bincount", "median", "kthvalue", "scatter_reduce", "cumsum", "_index_put_impl_"}


def values_of(kind: str) -> Tensor:
    return torch.randn(PACKED.data.shape if kind == "packed" else (5, 3, 3))


class Model(nn.Module):
    """From the numbers of an input to those of an output."""

    def __init__(self, kind: str, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        self.kind, self.rnn = kind, rnn_ext.RNN(*args, **kwargs)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "packed":
            return self.rnn(PackedSequence(x, *PACKED[1:]))[0].data
        if self.kind == "dense":
            return self.rnn(x)[0]
        weights, nonlinearity = self.rnn._weights(), self.rnn.nonlinearity
        options = {"nonlinearity": nonlinearity, "bidirectional": self.rnn.bidirectional, "lengths": LENGTHS}
        return rnn_ext.functional.rnn(x, weights, **options)[0]


def everything(model: Model, x: Tensor) -> list[Tensor]:
    """Outputs, gradients, gradients of gradients, tangents, per-sample gradients, and a mapped ensemble."""
    x = x.clone().requires_grad_()
    wanted = [x, *model.parameters()]
    y = model(x)
    first = torch.autograd.grad(y.pow(2).sum(), wanted, create_graph=True)
    second = torch.autograd.grad(sum(g.pow(2).sum() for g in first), wanted)
    values = x.detach()
    pair = torch.stack([values, -values])
    weights = {n: torch.stack([p, p * 0.5]).detach() for n, p in model.named_parameters()}

    def member(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(model, weights, x)

    return [
        y,
        *first,
        *second,
        torch.func.jvp(model, (values,), (torch.ones_like(values),))[1],
        torch.func.vmap(torch.func.grad(lambda x: model(x).pow(2).sum()))(pair),
        torch.func.vmap(member)(weights, pair),
        torch.func.vmap(member, in_dims=(0, None))(weights, values),
    ]


class Called(TorchDispatchMode):
    """Notes the name of every op that gets floating numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(isinstance(a, Tensor) and a.is_floating_point() for a in args):
            self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_raises_and_bits_repeat(kind: str, bidirectional: bool, nonlinearity: str) -> None:
    model = Model(kind, 3, 4, 2, nonlinearity, bidirectional=bidirectional)
    x = values_of(kind)
    expected = everything(model, x)
    # Whom a dispatch mode watches gets the pieces instead of a layer's one op, whose sums have another order.
    with Called():
        expected_of_pieces = everything(model, x)
    torch.use_deterministic_algorithms(True)  # which also fills what is allocated with NaN
    try:
        with Called() as called:
            of_pieces = everything(model, x)
        again = everything(model, x)
    finally:
        torch.use_deterministic_algorithms(False)
    assert "mm" in called.names or "addmm" in called.names
    assert not called.names & RAISES_ON_CUDA
    for found, before in ((of_pieces, expected_of_pieces), (again, expected)):
        assert all(torch.equal(a, b) for a, b in zip(found, before, strict=True))


def test_dropout_follows_the_seed() -> None:
    model, x = rnn_ext.RNN(3, 4, 3, dropout=0.5), torch.randn(5, 2, 3)
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(model(x)[0])
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
