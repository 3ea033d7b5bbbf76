"""What derivatives cost, in arithmetic and in kernel calls; time is for ``python -m benchmarks.derivatives``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, hessian, jvp, stack_module_state, vmap
from torch.utils._python_dispatch import TorchDispatchMode

import rnn_ext
from benchmarks import derivatives
from benchmarks.grid import Shape

TIME, BATCH, SIZE = 20, 6, 16


class Work(TorchDispatchMode):
    """Counts multiplications of matrix products, and calls of each op."""

    def __init__(self) -> None:
        super().__init__()
        self.multiplications, self.calls = 0, Counter[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        self.calls[name] += 1
        if name in ("mm", "addmm", "bmm", "baddbmm"):
            left = args[1 if name.startswith(("add", "badd")) else 0]
            self.multiplications += out.numel() * left.shape[-1]
        elif name in ("recurrence", "linear_recurrence"):
            self.multiplications += out[0].numel() * args[2].shape[-1]
        else:
            assert "matmul" not in name, f"{name} would go uncounted"
        return out

    @property
    def kernels(self) -> int:
        return self.calls["recurrence"] + self.calls["linear_recurrence"]


def work(call: Callable[[], Any]) -> Work:
    with Work() as counted:
        call()
    return counted


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("layers", [1, 2])
def test_a_hessian_vector_product_is_three_gradients(layers: int, bidirectional: bool) -> None:
    model = rnn_ext.RNN(SIZE, SIZE, layers, bidirectional=bidirectional)
    for name, interface in derivatives.transforms(model, torch.randn(TIME, BATCH, SIZE)).items():
        gradient, product = work(interface["gradient"]), work(interface[derivatives.PRODUCT])
        assert gradient.kernels == 2 * layers
        assert product.kernels == 4 * layers
        # For a layer whose input needs no gradient: 15 to 5 products of T*B*H*H, in forward over reverse 17 to 5.
        bound = {"torch.autograd": 3.2, "torch.func": 3.45}[name]
        assert product.multiplications <= bound * gradient.multiplications, name


@pytest.mark.parametrize("layers", [1, 2])
def test_transforms_call_each_kernel_once_a_layer(layers: int) -> None:
    """However long the sequence, however many samples or models: more rows or more groups, but not more calls."""
    model = rnn_ext.RNN(SIZE, SIZE, layers)
    for time, batch in ((TIME, BATCH), (2 * TIME, 3 * BATCH)):
        for name, call in derivatives.transforms(model, torch.randn(time, batch, SIZE))["torch.func"].items():
            counted = work(call)
            expected = 4 if name == derivatives.PRODUCT else 2
            assert counted.kernels == expected * layers, name


def test_a_hessian_is_one_batch_of_products() -> None:
    model, x = rnn_ext.RNN(3, 4), torch.randn(5, 2, 3)
    counted = work(lambda: hessian(lambda x: model(x)[0].pow(2).sum())(x))
    assert counted.kernels == 4


def test_per_sample_gradients_are_those_of_samples() -> None:
    model, x = rnn_ext.RNN(3, 4, 2, "relu", bidirectional=True), torch.randn(5, 6, 3)
    weights = {n: p.detach() for n, p in model.named_parameters()}

    def loss(weights: dict[str, Tensor], row: Tensor) -> Tensor:
        return functional_call(model, weights, row.unsqueeze(1))[0].pow(2).sum()

    together = vmap(grad(loss), (None, 1))(weights, x)
    for i in range(x.shape[1]):
        torch.testing.assert_close({n: g[i] for n, g in together.items()}, grad(loss)(weights, x[:, i]))


@pytest.mark.parametrize("bidirectional", [False, True])
def test_an_ensemble_is_its_members(bidirectional: bool) -> None:
    members = [rnn_ext.RNN(3, 4, 2, bidirectional=bidirectional) for _ in range(5)]
    weights, _ = stack_module_state(members)
    x = torch.randn(7, 2, 3)

    def loss(weights: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
        output, h_n = functional_call(members[0], weights, (x,))
        return output.pow(2).sum() + h_n.sum(), output

    for x_dim, inputs in ((None, x), (0, torch.randn(5, 7, 2, 3))):
        together, outputs = vmap(grad(loss, has_aux=True), (0, x_dim))(weights, inputs)
        for i, member in enumerate(members):
            own = inputs if x_dim is None else inputs[i]
            torch.testing.assert_close(outputs[i], member(own)[0])
            expected = grad(loss, has_aux=True)({n: p.detach() for n, p in member.named_parameters()}, own)[0]
            torch.testing.assert_close({n: g[i] for n, g in together.items()}, expected)


def test_both_hessian_vector_products_agree() -> None:
    model, x = rnn_ext.RNN(3, 4, 2, bidirectional=True).double(), torch.randn(5, 2, 3, dtype=torch.float64)
    weights = {n: p.detach() for n, p in model.named_parameters()}
    along = {n: torch.randn_like(p) for n, p in weights.items()}

    def loss(weights: dict[str, Tensor]) -> Tensor:
        return functional_call(model, weights, x)[0].pow(2).sum()

    forward = jvp(grad(loss), (weights,), (along,))[1]
    leaves = list(model.parameters())
    first = torch.autograd.grad(model(x)[0].pow(2).sum(), leaves, create_graph=True)
    reverse = torch.autograd.grad(first, leaves, list(along.values()))
    torch.testing.assert_close(tuple(forward.values()), reverse)


def test_the_benchmark(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(derivatives, "SHAPES", (Shape(4, 2, 3, 5),))
    assert derivatives.main(["--seconds", "0.01", "--threads", "1"]) in (0, 1)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| 4x2x3x5")]
    assert len(lines) == 7
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert all(float(row[3]) > 0 for row in cells)
    # torch.nn's cannot be mapped over samples; everything else it can.
    assert [row[2] for row in cells if row[5] == "fails"] == ["gradient of each sample"]

    def row(name: str, ratio: float) -> derivatives.Row:
        return derivatives.Row("1x1x1x1", "torch.func", name, {}, {derivatives.OURS: ratio})

    assert derivatives.too_dear([row(derivatives.PRODUCT, 4.5), row(derivatives.PRODUCT, 3.9), row("tangent", 9)]) == [
        "1x1x1x1 torch.func: 4.5"
    ]
