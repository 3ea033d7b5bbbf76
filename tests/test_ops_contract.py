"""What PyTorch expects of an op, what bad arguments get, and what happens where no kernel is built."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from problems import Problem, make
from torch import Tensor

from rnn_ext import dispatch, ops, reference

LAYOUTS = ("dense", "lengths", "packed")


@pytest.mark.parametrize("leaks", [None, "part", "whole"])
@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("seeded", [True, False])
def test_opcheck(linear: bool, layout: str, seeded: bool, leaks: str | None) -> None:
    seed_kind = "state" if seeded else None
    changes = {"resets": seeded, "masked": seeded}
    problem = make(4, 3, 5, (1, -1), layout, linear=linear, seed_kind=seed_kind, leaks=leaks, **changes)
    args = {k: v.requires_grad_() if k in problem.tensors else v for k, v in problem.args.items()}
    op = getattr(torch.ops.rnn_ext, problem.op)
    order = [a.name for a in op.default._schema.arguments]
    torch.library.opcheck(op.default, tuple(args[n] for n in order))


def test_meta_tensors_have_the_shapes() -> None:
    for layout in ("dense", "lengths"):
        problem = make(4, 3, 5, (1, -1), layout, seed_kind="state")
        meta = problem.with_args(**{n: problem.args[n].to("meta") for n in problem.tensors})
        for real, fake in zip(problem.run(ops), meta.run(ops), strict=True):
            assert fake.is_meta
            assert fake.shape == real.shape
            assert fake.stride() == real.stride()


DENSE = make(4, 3, 5, (1,), "dense", seed_kind="state")
PACKED = make(4, 3, 5, (1,), "packed")
RAGGED = make(4, 3, 5, (1,), "lengths")
LINEAR = make(4, 3, 5, (1,), "dense", linear=True, seed_kind="state")
LEAKY = make(4, 3, 5, (1,), "dense", linear=True, seed_kind="state", leaks="part")


@pytest.mark.parametrize(
    ("problem", "changes", "sentence"),
    [
        (DENSE, {"nonlinearity": "sin"}, "nonlinearity must be 'tanh' or 'relu', got 'sin'"),
        (DENSE, {"direction": (2,)}, "direction must be made of 1 and -1, got 2"),
        (DENSE, {"w": torch.zeros(5, 4).double()}, r"w must have shape \(G\*H, H\) with 1 groups .* got \(5, 4\)"),
        (DENSE, {"u": torch.zeros(4, 3, 6).double()}, r"u must have G\*H = 5 columns, got \(4, 3, 6\)"),
        (DENSE, {"u": torch.zeros(4, 5).double()}, "u must have 3 dimensions, got 2"),
        (DENSE, {"u": torch.zeros(0, 3, 5).double()}, r"u must have at least one step, got \(0, 3, 5\)"),
        (PACKED, {"batch_sizes": torch.zeros(0).long()}, r"batch_sizes must have at least one step, got \(0\)"),
        (LINEAR, {"factor": torch.zeros(0, 3, 5).double()}, r"factor must have at least one step, got \(0, 3, 5\)"),
        (DENSE, {"h0": torch.zeros(1, 2, 5).double()}, r"h0 must have shape \(1, 3, 5\), got \(1, 2, 5\)"),
        (DENSE, {"h0": torch.zeros(1, 3, 5)}, "all of the tensors must be on w's device and of its dtype"),
        (DENSE, {"lengths": torch.tensor([4, 5, 1])}, "lengths must be from 1 to the padded length 4, got 5"),
        (DENSE, {"lengths": torch.tensor([4, 0, 1])}, "lengths must be from 1 to the padded length 4, got 0"),
        (DENSE, {"lengths": torch.tensor([4, 1])}, "lengths must have one entry for each of the 3 sequences, got 2"),
        (RAGGED, {"lengths": torch.tensor([1.0, 2.0, 3.0])}, "lengths must be a contiguous one-dimensional int64"),
        (PACKED, {"batch_sizes": torch.tensor([1, 2])}, "batch_sizes must be positive and not increasing, got 2"),
        (PACKED, {"batch_sizes": torch.tensor([1, 1])}, "batch_sizes add up to 2, but the packed data has"),
        (PACKED, {"lengths": torch.tensor([1])}, "batch_sizes and lengths exclude each other"),
        (DENSE, {"reset": torch.zeros(4, 2).bool()}, r"reset must have shape \(4, 3\), got \(4, 2\)"),
        (DENSE, {"reset": torch.zeros(4, 3)}, "reset must be a bool tensor on w's device"),
        (PACKED, {"reset": torch.zeros(4, 3).bool()}, "reset is for padded sequences; it excludes batch_sizes"),
        (DENSE, {"mask": torch.zeros(1, 5).double()}, r"mask must have shape \(1, 3, 5\), got \(1, 5\)"),
        (DENSE, {"mask": torch.zeros(1, 3, 5)}, "all of the tensors must be on w's device and of its dtype"),
        (DENSE, {"leak": torch.zeros(4, 3, 6).double()}, r"leak must have shape \(4, 3, 5\), got \(4, 3, 6\)"),
        (DENSE, {"leak": torch.zeros(4, 3, 5)}, "all of the tensors must be on w's device and of its dtype"),
        (LEAKY, {"leak": torch.zeros(4, 2, 5).double()}, r"leak must have shape \(4, 3, 5\), got \(4, 2, 5\)"),
        (LEAKY, {"seed_kind": "x"}, "seed_kind must be 'state' or 'product', got 'x'"),
        (LEAKY, {"transpose": True}, "a transposed leaky_linear_recurrence starts from a product"),
        (LINEAR, {"derivative": "sin"}, "derivative must be 'tanh', 'relu' or 'given', got 'sin'"),
        (LINEAR, {"seed_kind": "x"}, "seed_kind must be 'state' or 'product', got 'x'"),
        (LINEAR, {"v": torch.zeros(4, 2, 5).double()}, r"v must have shape \(4, 3, 5\), got \(4, 2, 5\)"),
    ],
    ids=lambda x: str(x)[:60],
)
def test_bad_arguments(problem: Problem, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RuntimeError, match=sentence):
        problem.with_args(**changes).run(ops)


def test_unknown_instruction_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RNN_EXT_CPU_ISA", "mmx")
    with pytest.raises(ValueError, match="RNN_EXT_CPU_ISA is 'mmx'; this machine runs: baseline"):
        DENSE.run(ops)


@pytest.fixture
def _forget_warnings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(dispatch, "_warned", set())
    yield


@pytest.mark.usefixtures("_forget_warnings")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("leaks", [None, "part", "whole"])
def test_other_dtypes_run_the_reference(layout: str, leaks: str | None) -> None:
    dtype = torch.complex64
    problem = make(4, 3, 5, (1, -1), layout, seed_kind="state", leaks=leaks).cast(dtype)
    with pytest.warns(UserWarning, match=f"no kernel for {dtype} on cpu.*use a dtype that has one"):
        ours = problem.run(ops)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        problem.run(ops)  # it says so once
    gradients: list[Tensor | None] = []
    for got, theirs in zip(ours, problem.run(reference), strict=True):
        torch.testing.assert_close(got, theirs)
    for module in (ops, reference):
        w = problem.args["w"].clone().requires_grad_()
        problem.with_args(w=w).run(module)[0].abs().sum().backward()
        gradients.append(w.grad)
    torch.testing.assert_close(*gradients)
