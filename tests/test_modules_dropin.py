"""RNN and RNNCell beside torch.nn's own: same weights, values, gradients, strides and random streams."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from helpers import assert_as_accurate
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import rnn_ext

FORMS = ("padded", "unbatched", "packed sorted", "packed unsorted")


def pair(*args: Any, **kwargs: Any) -> tuple[rnn_ext.RNN, nn.RNN]:
    theirs = nn.RNN(*args, **kwargs)
    ours = rnn_ext.RNN(*args, **kwargs)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def data_of(x: Tensor | PackedSequence) -> Tensor:
    return x.data if isinstance(x, PackedSequence) else x


def step(
    module: nn.Module, x: Tensor, lengths: Tensor | None, sort: bool, hx: Tensor | None, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Outputs and all gradients of one training step, in ``dtype``."""
    module = module.to(dtype)
    module.zero_grad()
    x = x.to(dtype, copy=True).requires_grad_()
    hx = None if hx is None else hx.to(dtype, copy=True).requires_grad_()
    given = x if lengths is None else pack_padded_sequence(x, lengths, enforce_sorted=sort)
    output, h_n = module(given, hx)
    values = data_of(output)
    g = torch.linspace(-1, 1, values.numel(), dtype=torch.float32).to(dtype).view_as(values)
    g_n = torch.linspace(1, -1, h_n.numel(), dtype=torch.float32).to(dtype).view_as(h_n)
    torch.autograd.backward([values, h_n], [g, g_n])
    result = {"output": values, "h_n": h_n, "gradient of input": x.grad}
    if hx is not None:
        result["gradient of hx"] = hx.grad
    result.update({f"gradient of {n}": p.grad for n, p in module.named_parameters()})
    return {k: v.detach().clone() for k, v in result.items() if v is not None}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_every_combination(num_layers: int, bidirectional: bool, nonlinearity: str, form: str) -> None:
    sizes = torch.Generator().manual_seed(num_layers + 10 * bidirectional + 100 * len(form))

    def pick(*choices: int) -> int:
        return choices[int(torch.randint(len(choices), (), generator=sizes))]

    for bias, batch_first, with_hx in product([True, False], [True, False], [True, False]):
        time, batch = pick(1, 2, 5, 9), pick(1, 2, 7, 13)
        input_size, hidden_size = pick(1, 3, 10, 17), pick(1, 5, 16, 33, 64, 65)
        ours, theirs = pair(
            input_size, hidden_size, num_layers, nonlinearity, bias, batch_first, bidirectional=bidirectional
        )
        lengths = None
        shape: tuple[int, ...] = (time, batch, input_size)
        if form == "unbatched":
            shape = (time, input_size)
        elif form.startswith("packed"):
            lengths = torch.randint(1, time + 1, (batch,), generator=sizes)
            lengths[0] = time
            if form == "packed sorted":
                lengths = lengths.sort(descending=True).values
        elif batch_first:
            shape = (batch, time, input_size)
        states = num_layers * (2 if bidirectional else 1)
        hx = torch.randn(states, *shape[1:-1] if form != "padded" else (batch,), hidden_size) if with_hx else None
        x = torch.randn(shape)
        args = (x, lengths, form == "packed sorted", hx)
        what = f"{form} T={time} B={batch} I={input_size} H={hidden_size} bias={bias} batch_first={batch_first}"
        single = step(ours, *args, torch.float32), step(theirs, *args, torch.float32)
        exact = step(theirs, *args, torch.float64)
        assert list(single[0]) == list(exact)
        # A gradient of one or two elements is a sum that may cancel, of terms as large as other gradients are.
        scale = max(x.abs().max().item() for x in exact.values())
        for name in exact:
            assert_as_accurate(single[0][name], single[1][name], exact[name], f"{name}, {what}", scale)
        double = step(ours, *args, torch.float64)
        for name in exact:
            torch.testing.assert_close(double[name], exact[name], rtol=1e-10, atol=1e-11, msg=f"{name}, {what}")


def test_parameters_are_the_same() -> None:
    for args in ((3, 5), (3, 5, 2, "relu", False), (3, 5, 2, "tanh", True, True, 0.5, True)):
        torch.manual_seed(7)
        theirs = nn.RNN(*args)
        torch.manual_seed(7)
        ours = rnn_ext.RNN(*args)
        assert list(ours.state_dict()) == list(theirs.state_dict())
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert torch.equal(a, b)
        assert repr(ours) == repr(theirs)
    torch.manual_seed(7)
    cell = nn.RNNCell(3, 5, False, "relu")
    torch.manual_seed(7)
    assert torch.equal(rnn_ext.RNNCell(3, 5, False, "relu").weight_ih, cell.weight_ih)
    assert repr(rnn_ext.RNNCell(3, 5, False, "relu")) == repr(cell)


@pytest.mark.parametrize("batch_first", [False, True])
def test_strides_are_the_same(batch_first: bool) -> None:
    ours, theirs = pair(3, 4, 2, batch_first=batch_first, bidirectional=True)
    x = torch.randn(5, 6, 3)
    for a, b in zip(ours(x), theirs(x), strict=True):
        assert a.stride() == b.stride()


@pytest.mark.parametrize("edit", [lambda y, h: y.mul_(2), lambda y, h: y.relu_(), lambda y, h: h.mul_(3)])
@pytest.mark.parametrize("time", [1, 6])
@pytest.mark.parametrize("num_layers", [1, 2])
def test_outputs_may_be_edited_in_place(edit: Any, time: int, num_layers: int) -> None:
    x = torch.randn(time, 3, 4)
    found = []
    for module in pair(4, 7, num_layers):
        output, h_n = module(x)
        edit(output, h_n)
        (output.sum() + h_n.pow(2).sum()).backward()
        found.append([p.grad for p in module.parameters()])
    torch.testing.assert_close(*found)


def test_outputs_do_not_alias() -> None:
    ours, _ = pair(4, 7)
    for x in (torch.randn(5, 3, 4), torch.randn(1, 3, 4)):
        with torch.no_grad():
            output, h_n = ours(x)
            before = h_n.clone()
            output.zero_()
            assert torch.equal(h_n, before)


def test_no_sequence_at_all() -> None:
    for module in pair(4, 7, 2, bidirectional=True):
        output, h_n = module(torch.randn(5, 0, 4))
        assert output.shape == (5, 0, 14)
        assert h_n.shape == (4, 0, 7)
        output.sum().backward()
        assert all(p.grad is not None and not p.grad.any() for p in module.parameters())


def test_a_single_step_leaves_zero_gradients() -> None:
    ours, theirs = pair(4, 7)
    for module in (ours, theirs):
        module(torch.ones(1, 2, 4))[0].sum().backward()
    assert ours.weight_hh_l0.grad is not None
    torch.testing.assert_close(
        [p.grad for p in ours.parameters()], [p.grad for p in theirs.parameters()], check_stride=False
    )


def test_dropout_draws_the_same_numbers() -> None:
    ours, theirs = pair(4, 7, 3, dropout=0.4)
    x = torch.randn(6, 3, 4)
    for train in (True, False):
        results = []
        for module in (ours, theirs):
            torch.manual_seed(3)
            results.append(module.train(train)(x)[0])
        torch.testing.assert_close(*results)


@pytest.mark.filterwarnings("ignore:rnn_ext has no kernel", "ignore:Complex modules")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.complex64])
def test_other_dtypes(dtype: torch.dtype) -> None:
    ours, theirs = (m.to(dtype) for m in pair(4, 7, 2))
    x = torch.randn(5, 3, 4, dtype=dtype)
    torch.testing.assert_close(ours(x), theirs(x), rtol=2e-2, atol=2e-2)
    ours(x)[0].abs().sum().backward()
    theirs(x)[0].abs().sum().backward()
    torch.testing.assert_close(ours.weight_hh_l0.grad, theirs.weight_hh_l0.grad, rtol=5e-2, atol=5e-2)


@pytest.mark.filterwarnings("ignore:rnn_ext has no kernel")
def test_autocast_gives_the_same_dtypes() -> None:
    ours, theirs = pair(4, 7)
    x = torch.randn(5, 3, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        results = [m(x) for m in (ours, theirs)]
    for a, b in zip(*results, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("frozen", range(4))
def test_parameters_frozen_one_by_one(frozen: int) -> None:
    ours, theirs = pair(4, 7)
    for module in (ours, theirs):
        list(module.parameters())[frozen].requires_grad_(False)
        module(torch.ones(5, 2, 4))[0].sum().backward()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None)
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad)


def test_editing_a_saved_weight_raises() -> None:
    for module in pair(4, 7):
        output, _ = module(torch.randn(5, 3, 4))
        with torch.no_grad():
            module.weight_hh_l0.mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            output.sum().backward()


def test_derivatives_of_every_order_through_the_module() -> None:
    ours, theirs = (m.double() for m in pair(2, 3, 2, bidirectional=True))
    x = torch.randn(4, 2, 2, dtype=torch.float64)
    names = [n for n, _ in ours.named_parameters()]

    def loss(module: nn.Module, x: Tensor, *weights: Tensor) -> Tensor:
        return torch.func.functional_call(module, dict(zip(names, weights, strict=True)), (x,))[0].pow(2).sum()

    weights = tuple(p.detach().clone().requires_grad_() for p in ours.parameters())
    assert torch.autograd.gradcheck(lambda *v: loss(ours, *v), (x.requires_grad_(), *weights), check_forward_ad=True)
    plain = [w.detach() for w in weights]
    hessians = [torch.func.hessian(lambda v, m=m: loss(m, v, *plain))(x.detach()) for m in (ours, theirs)]
    torch.testing.assert_close(*hessians)
    per_sample = torch.func.vmap(lambda v: torch.func.grad(lambda w: loss(ours, v, w, *plain[1:]))(plain[0]))
    batch = torch.randn(3, 4, 2, 2, dtype=torch.float64)
    each = [torch.func.grad(lambda w, v=v: loss(theirs, v, w, *plain[1:]))(plain[0]) for v in batch]
    torch.testing.assert_close(per_sample(batch), torch.stack(each))


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_cell(nonlinearity: str) -> None:
    theirs = nn.RNNCell(4, 7, nonlinearity=nonlinearity)
    ours = rnn_ext.RNNCell(4, 7, nonlinearity=nonlinearity)
    ours.load_state_dict(theirs.state_dict())
    for x, h in ((torch.randn(3, 4), torch.randn(3, 7)), (torch.randn(4), torch.randn(7)), (torch.randn(3, 4), None)):
        found = []
        for cell in (ours, theirs):
            cell.zero_grad()
            y = cell(x, h)
            y.sum().backward()
            found.append([y, *(p.grad for p in cell.parameters())])
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
