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
RECURRENCE = [
    make(4, 3, 2, direction, layout, nonlinearity=nonlinearity, seed_kind=seed)
    for direction in ((1,), (-1,), (1, -1))
    for layout in LAYOUTS
    for nonlinearity, seed in (("tanh", "state"), ("relu", None))
]
LINEAR = [
    make(3, 3, 2, direction, layout, linear=True, nonlinearity=nonlinearity, seed_kind=seed, transpose=transpose)
    for direction, transpose in (((1,), False), ((-1, 1), True))
    for layout in LAYOUTS
    for nonlinearity, seed in (("tanh", "state"), ("given", "product"), ("relu", "state"))
]


def function_of(problem: Problem, module: Any, names: list[str]) -> Callable[..., tuple[Tensor, Tensor]]:
    return lambda *values: problem.with_args(**dict(zip(names, values, strict=True))).run(module)


def leaves(problem: Problem) -> list[Tensor]:
    return [problem.args[n].clone().requires_grad_() for n in problem.tensors]


@pytest.mark.parametrize("problem", RECURRENCE + LINEAR, ids=str)
def test_gradcheck(problem: Problem) -> None:
    f = function_of(problem, ops, problem.tensors)
    assert gradcheck(f, leaves(problem), check_forward_ad=True, check_batched_grad=True)


@pytest.mark.parametrize("problem", RECURRENCE[::2] + LINEAR[::2], ids=str)
def test_gradgradcheck(problem: Problem) -> None:
    f = function_of(problem, ops, problem.tensors)
    assert gradgradcheck(f, leaves(problem), check_fwd_over_rev=True, check_batched_grad=True)


def backward(problem: Problem, module: Any, g: Tensor | None, g_n: Tensor | None, names: list[str]) -> list[Tensor]:
    values = [problem.args[n].detach().clone().requires_grad_() for n in names]
    outputs = function_of(problem, module, names)(*values)
    pairs = [(o, g) for o, g in zip(outputs, (g, g_n), strict=True) if g is not None]
    found = torch.autograd.grad([o for o, _ in pairs], values, [g for _, g in pairs], allow_unused=True)
    return [torch.zeros_like(v) if d is None else d for v, d in zip(values, found, strict=True)]


@settings(max_examples=40)
@given(problems(max_hidden=129, min_time=1), st.sampled_from(["h", "h_n", "both"]))
def test_float32_gradients(problem: Problem, arrives: str) -> None:
    single = problem.cast(torch.float32)
    h, h_n = single.run(reference)
    g = None if arrives == "h_n" else torch.randn_like(h)
    g_n = None if arrives == "h" else torch.randn_like(h_n)
    wide = [None if x is None else x.double() for x in (g, g_n)]
    ours, theirs = (backward(single, m, g, g_n, problem.tensors) for m in (ops, reference))
    exact = backward(single.cast(torch.float64), reference, wide[0], wide[1], problem.tensors)
    for name, *values in zip(problem.tensors, ours, theirs, exact, strict=True):
        assert_as_accurate(values[0], values[1], values[2], f"gradient of {name} of {problem}")


@pytest.mark.parametrize("problem", [RECURRENCE[0], RECURRENCE[-2], LINEAR[0], LINEAR[-2]], ids=str)
def test_any_subset_may_require_grad(problem: Problem) -> None:
    h, h_n = problem.run(reference)
    g, g_n = torch.randn_like(h), torch.randn_like(h_n)
    for size in range(1, len(problem.tensors) + 1):
        for names in combinations(problem.tensors, size):
            ours, theirs = (backward(problem, m, g, g_n, list(names)) for m in (ops, reference))
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("problem", [RECURRENCE[0], RECURRENCE[-2], LINEAR[0]], ids=str)
def test_third_order(problem: Problem) -> None:
    def third(module: Any) -> tuple[Tensor, ...]:
        values = leaves(problem)
        y = sum(o.pow(3).sum() for o in function_of(problem, module, problem.tensors)(*values))
        for _ in range(2):
            grads = torch.autograd.grad(y, values, create_graph=True)
            y = sum(d.pow(2).sum() for d in grads)
        return torch.autograd.grad(y, values)

    torch.testing.assert_close(third(ops), third(reference))


TRANSFORMS: dict[str, Callable[[Callable[..., Tensor], tuple[Tensor, ...]], Any]] = {
    "jvp": lambda f, x: torch.func.jvp(f, x, tuple(torch.ones_like(v) for v in x)),
    "grad": lambda f, x: torch.func.grad(lambda *v: f(*v).pow(2).sum(), argnums=tuple(range(len(x))))(*x),
    "jacrev": lambda f, x: torch.func.jacrev(f, argnums=tuple(range(len(x))))(*x),
    "jacfwd": lambda f, x: torch.func.jacfwd(f, argnums=tuple(range(len(x))))(*x),
    "hessian": lambda f, x: torch.func.hessian(lambda *v: f(*v).pow(2).sum(), argnums=0)(*x),
    "vjp of vjp": lambda f, x: torch.func.grad(
        lambda *v: sum(g.pow(2).sum() for g in torch.func.grad(lambda *w: f(*w).sum(), argnums=(0, 1))(*v))
    )(*x),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("problem", [RECURRENCE[0], RECURRENCE[-2], LINEAR[0], LINEAR[-2]], ids=str)
def test_transforms(problem: Problem, transform: str) -> None:
    x = tuple(problem.args[n] for n in problem.tensors)

    def transformed(module: Any) -> Any:
        f = function_of(problem, module, problem.tensors)
        return TRANSFORMS[transform](lambda *v: f(*v)[0], x)

    torch.testing.assert_close(transformed(ops), transformed(reference))


@pytest.mark.parametrize("mapped", ["rows", "weights", "both", "seed"])
@pytest.mark.parametrize("problem", [RECURRENCE[0], RECURRENCE[4], RECURRENCE[-2], LINEAR[0], LINEAR[-4]], ids=str)
def test_vmap(problem: Problem, mapped: str) -> None:
    sequences = {"u", "v", "factor"}
    names = [
        n
        for n in problem.tensors
        if {"rows": n in sequences, "weights": n == "w", "both": n != "factor", "seed": n in ("h0", "seed")}[mapped]
    ]
    if not names:
        names = ["u"]
    values = [torch.stack([problem.args[n] * (1 + 0.1 * i) for i in range(3)], dim=1) for n in names]
    f = function_of(problem, ops, names)
    ours = torch.func.vmap(f, in_dims=1)(*values)
    each = [function_of(problem, reference, names)(*(v.select(1, i) for v in values)) for i in range(3)]
    for got, want in zip(ours, zip(*each, strict=True), strict=True):
        torch.testing.assert_close(got, torch.stack(want))


@pytest.mark.parametrize("problem", [RECURRENCE[0], RECURRENCE[-2]], ids=str)
def test_per_sample_gradients(problem: Problem) -> None:
    u = torch.stack([problem.args["u"] * (i + 1) for i in range(4)])

    def loss(module: Any) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda w, x: problem.with_args(u=x, w=w).run(module)[0].pow(2).sum()

    w = problem.args["w"]
    ours = torch.func.vmap(torch.func.grad(loss(ops)), in_dims=(None, 0))(w, u)
    each = torch.stack([torch.func.grad(loss(reference))(w, x) for x in u])
    torch.testing.assert_close(ours, each)
