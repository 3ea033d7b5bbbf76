"""Derivatives of the primitives: every order, every mode, every transform, against autograd on the reference."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import Any

import pytest
import torch
from helpers import assert_as_accurate
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import Problem, make, problems
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from rnn_ext import ops, reference

LAYOUTS = ("dense", "lengths", "packed")
# Small, since a check's cost grows with the square of the elements.
SIZES = ((3, 2, 2, (1,)), (3, 2, 2, (-1,)), (2, 2, 2, (1, -1)), (1, 1, 3, (1,)))
RECURRENCE = [
    make(*size, layout, nonlinearity=nonlinearity, seed_kind=seed, resets=changed, masked=changed)
    for size in SIZES
    for layout in LAYOUTS
    for nonlinearity, seed, changed in (
        ("tanh", "state", False),
        ("tanh", None, False),
        ("relu", "state", False),
        ("tanh", "state", True),
    )
]
OPTIONS = (
    # derivative, seed_kind, transpose, no_v, resets and mask
    ("tanh", "state", False, False, False),
    ("tanh", "product", True, False, False),
    ("relu", "state", True, False, False),
    ("relu", "product", False, False, False),
    ("given", "state", True, False, False),
    ("given", "product", False, False, False),
    ("given", None, True, False, False),
    ("tanh", "state", False, True, False),
    ("given", "state", False, False, True),
    ("tanh", "product", True, False, True),
)
LINEAR = [
    make(
        *size,
        layout,
        linear=True,
        nonlinearity=derivative,
        seed_kind=seed,
        transpose=transpose,
        no_v=no_v,
        resets=changed,
        masked=changed,
    )
    for size in SIZES
    for layout in LAYOUTS
    for derivative, seed, transpose, no_v, changed in OPTIONS
]
LEAKY_OPTIONS: tuple[dict[str, Any], ...] = (
    {"nonlinearity": "tanh", "seed_kind": "state", "resets": True, "masked": True},
    {"nonlinearity": "relu", "seed_kind": "state"},
    {"nonlinearity": "tanh", "seed_kind": "state", "leaks": "whole"},
    {"nonlinearity": "relu", "leaks": "whole", "masked": True},
    {"linear": True, "seed_kind": "state", "resets": True, "masked": True},
    {"linear": True, "seed_kind": "product", "no_v": True},
    {"linear": True, "transpose": True, "seed_kind": "product", "resets": True, "masked": True},
    {"linear": True, "transpose": True, "leaks": "whole"},
)
LEAKY = [
    make(*size, layout, **{"leaks": "part", **options})
    for size in SIZES
    for layout in LAYOUTS
    for options in LEAKY_OPTIONS
]
# For what is compared with the reference under the same transform: every layout of both, directions mixed.
SAMPLES = [
    make(4, 3, 2, direction, layout, nonlinearity=nonlinearity, seed_kind="state", resets=changed, masked=changed)
    for direction, layout, nonlinearity, changed in (
        ((1,), "dense", "tanh", False),
        ((-1,), "lengths", "relu", False),
        ((1, -1), "packed", "tanh", False),
        ((1, -1), "dense", "tanh", True),
        ((1, -1), "lengths", "relu", True),
        ((-1,), "packed", "tanh", True),
    )
] + [
    make(
        *(4, 3, 2, direction, layout),
        linear=True,
        nonlinearity=derivative,
        seed_kind=seed,
        transpose=transpose,
        resets=changed,
        masked=changed,
    )
    for direction, layout, derivative, seed, transpose, changed in (
        ((1,), "dense", "tanh", "state", False, False),
        ((1, -1), "lengths", "given", "product", True, False),
        ((-1, 1), "packed", "given", "state", True, False),
        ((-1,), "lengths", "relu", "state", False, False),
        ((1, -1), "dense", "given", "state", True, True),
        ((-1, 1), "lengths", "tanh", "product", False, True),
    )
]
SAMPLES += [
    make(4, 3, 2, direction, layout, **{"leaks": "part", **options})
    for direction, layout, options in zip(
        ((1, -1), (-1,), (1, -1), (-1,), (1,), (-1, 1), (1, -1), (-1,)),
        ("dense", "lengths", "packed", "dense", "lengths", "packed", "dense", "lengths"),
        LEAKY_OPTIONS,
        strict=True,
    )
]
samples = pytest.mark.parametrize("problem", SAMPLES, ids=str)


def test_the_ragged_problems_are_ragged() -> None:
    for problem in RECURRENCE + LINEAR + LEAKY + SAMPLES:
        lengths, batch_sizes = problem.args["lengths"], problem.args["batch_sizes"]
        assert lengths is None or len(lengths) == 1 or lengths.min() < lengths.max()
        assert batch_sizes is None or len(batch_sizes) == 1 or batch_sizes[-1] < batch_sizes[0]


def function_of(problem: Problem, module: Any, names: list[str]) -> Callable[..., tuple[Tensor, Tensor]]:
    return lambda *values: problem.with_args(**dict(zip(names, values, strict=True))).run(module)


def leaves(problem: Problem) -> list[Tensor]:
    return [problem.args[n].clone().requires_grad_() for n in problem.tensors]


@pytest.mark.parametrize("problem", RECURRENCE + LINEAR + LEAKY, ids=str)
def test_gradcheck(problem: Problem) -> None:
    f = function_of(problem, ops, problem.tensors)
    assert gradcheck(
        f, leaves(problem), check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True
    )


# Of (L) only the reversed and the mixed sizes: what is forward in time is then run by their gradients.
@pytest.mark.parametrize("problem", RECURRENCE + LINEAR[len(LINEAR) // 4 : 3 * len(LINEAR) // 4] + LEAKY, ids=str)
def test_gradgradcheck(problem: Problem) -> None:
    f = function_of(problem, ops, problem.tensors)
    assert gradgradcheck(f, leaves(problem), check_fwd_over_rev=True, check_batched_grad=True)


def backward(problem: Problem, module: Any, g: Tensor | None, g_n: Tensor | None, names: list[str]) -> list[Tensor]:
    # Not cloned: a clone has no gaps between its rows.
    values = [problem.args[n].detach().requires_grad_() for n in names]
    outputs = function_of(problem, module, names)(*values)
    pairs = [(o, g) for o, g in zip(outputs, (g, g_n), strict=True) if g is not None and o.requires_grad]
    if not pairs:  # of a ReLU's saved output, for one, nothing depends smoothly
        return [torch.zeros_like(v) for v in values]
    found = torch.autograd.grad([o for o, _ in pairs], values, [g for _, g in pairs], allow_unused=True)
    return [torch.zeros_like(v) if d is None else d for v, d in zip(values, found, strict=True)]


@settings(max_examples=60)
@given(problems(max_hidden=129), st.sampled_from(["h", "h_n", "both"]))
def test_float32_gradients(problem: Problem, arrives: str) -> None:
    single = problem.cast(torch.float32)
    h, h_n = single.run(reference)
    # The same numbers when a failing example is replayed.
    generator = torch.Generator().manual_seed(0)
    g = None if arrives == "h_n" else torch.randn(h.shape, generator=generator)
    g_n = None if arrives == "h" else torch.randn(h_n.shape, generator=generator)
    wide = [None if x is None else x.double() for x in (g, g_n)]
    ours, theirs = (backward(single, m, g, g_n, problem.tensors) for m in (ops, reference))
    exact = backward(single.cast(torch.float64), reference, wide[0], wide[1], problem.tensors)
    for name, *values in zip(problem.tensors, ours, theirs, exact, strict=True):
        assert_as_accurate(values[0], values[1], values[2], f"gradient of {name} of {problem}, arriving at {arrives}")


@samples
@pytest.mark.parametrize("arrives", ["h", "h_n", "both"])
def test_any_subset_may_require_grad(problem: Problem, arrives: str) -> None:
    h, h_n = problem.run(reference)
    g = None if arrives == "h_n" else torch.randn_like(h)
    g_n = None if arrives == "h" else torch.randn_like(h_n)
    for size in range(1, len(problem.tensors) + 1):
        for names in combinations(problem.tensors, size):
            ours, theirs = (backward(problem, m, g, g_n, list(names)) for m in (ops, reference))
            torch.testing.assert_close(ours, theirs)


@samples
def test_third_order(problem: Problem) -> None:
    def third(module: Any) -> tuple[Tensor, ...]:
        values = leaves(problem)
        y = sum(o.pow(3).sum() for o in function_of(problem, module, problem.tensors)(*values))
        for _ in range(2):
            grads = torch.autograd.grad(y, values, create_graph=True, materialize_grads=True)
            y = sum(d.pow(2).sum() for d in grads)
        return torch.autograd.grad(y, values, materialize_grads=True)

    torch.testing.assert_close(third(ops), third(reference))


@pytest.mark.parametrize("special", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", ["u", "g", "g_n"])
# With a leak the derivative is a factor like any other, and zero times NaN is NaN where ReLU's own would cut it.
@pytest.mark.parametrize(("nonlinearity", "leaks"), [("tanh", None), ("relu", None), ("tanh", "part")])
def test_nan_and_infinity_in_gradients(nonlinearity: str, leaks: str | None, name: str, special: float) -> None:
    """As autograd through torch.tanh and torch.relu: a step that went wrong shows in the same gradients."""
    problem = make(4, 3, 19, (1, -1), "dense", nonlinearity=nonlinearity, seed_kind="state", leaks=leaks)
    h, h_n = problem.run(reference)
    at = {"u": problem.args["u"].clone(), "g": torch.randn_like(h), "g_n": torch.randn_like(h_n)}
    at[name][(1, 1, 18)] = special
    problem = problem.with_args(u=at["u"])
    ours, theirs = (backward(problem, m, at["g"], at["g_n"], problem.tensors) for m in (ops, reference))
    for argument, a, b in zip(problem.tensors, ours, theirs, strict=True):
        torch.testing.assert_close(a, b, equal_nan=True, msg=lambda m, n=argument: f"gradient of {n}: {m}")


PADDING = [
    make(5, 4, 3, direction, "lengths", linear=linear, nonlinearity=nonlinearity, seed_kind="state")
    for direction in ((1,), (1, -1))
    for linear, nonlinearity in ((False, "tanh"), (False, "relu"), (True, "tanh"), (True, "relu"), (True, "given"))
] + [
    make(5, 4, 3, direction, "lengths", **{"leaks": "part", **options})
    for direction in ((1,), (1, -1))
    for options in LEAKY_OPTIONS
]


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("where", ["rows", "g"])
@pytest.mark.parametrize("problem", PADDING, ids=str)
def test_padding_never_changes_a_gradient(problem: Problem, where: str, order: int) -> None:
    """NaN where a row has ended, in what goes in or in what arrives: the same bits, and zeros in the padding."""
    ended = (torch.arange(5).unsqueeze(1) >= problem.args["lengths"]).unsqueeze(2)
    h, h_n = problem.run(reference)
    g, g_n = torch.randn_like(h), torch.randn_like(h_n)
    rows = [n for n in ("u", "v", "factor", "leak") if problem.args.get(n) is not None]
    rows = [n for n in rows if problem.args[n].is_floating_point()]
    poisoned = problem.with_args(**{n: problem.args[n].masked_fill(ended, torch.nan) for n in rows})

    def gradients(problem: Problem, g: Tensor) -> tuple[Tensor, ...]:
        values, arriving = leaves(problem), [g.clone().requires_grad_(), g_n.clone().requires_grad_()]
        outputs = function_of(problem, ops, problem.tensors)(*values)
        first = torch.autograd.grad(outputs, values, arriving, create_graph=True, materialize_grads=True)
        if order == 1:
            return first
        return torch.autograd.grad(sum(d.pow(2).sum() for d in first), values + arriving, materialize_grads=True)

    clean = gradients(problem, g)
    other = gradients(poisoned, g) if where == "rows" else gradients(problem, g.masked_fill(ended, torch.nan))
    for name, a, b in zip([*problem.tensors, "g", "g_n"], clean, other, strict=False):
        assert torch.equal(a, b), f"gradient of {name} has other bits; NaN in {int(b.isnan().sum())} elements"
