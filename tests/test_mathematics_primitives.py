"""The primitives of docs/mathematics.md and their derivatives, (R), (L) and (11) to (16), with groups and directions,
through rnn_ext.ops, beside the same by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from by_hand import (
    DERIVATIVE,
    NONLINEARITIES,
    SECOND_DERIVATIVE,
    SEEDS,
    Array,
    Batch,
    before,
    check,
    loop_delta,
    loop_l,
    loop_l_gradients,
    loop_l_tangent,
    loop_r,
    outer_sum,
)
from torch import Tensor
from torch.autograd import forward_ad

from rnn_ext import ops

# torch's own forward mode compiles some of its derivatives with torch.jit, and warns of it.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")


class Recurrence:
    """Random arguments of (R), and their loops."""

    def __init__(self, layout: str, nonlinearity: str, seed: int) -> None:
        self.rng = rng = np.random.default_rng(seed)
        self.batch = batch = Batch.generate(layout, rng)
        self.nonlinearity = nonlinearity
        self.u, self.h0, self.w = batch.rows(rng, batch.groups * batch.hidden), batch.states(rng), batch.weight(rng)
        self.g, self.g_n = torch.from_numpy(rng.standard_normal(self.u.shape)), batch.states(rng)
        u, h0, w = batch.split(self.u), batch.split_states(self.h0), batch.split_weight(self.w)
        self.h = {k: loop_r(u[k], h0[k], w[k[0]], nonlinearity) for k in batch.each()}

    def run(self, u: Tensor, h0: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        return ops.recurrence(u, h0, w, *self.batch.ragged, *(None,) * 3, self.nonlinearity, self.batch.direction)

    def s(self) -> dict[tuple[int, int], Array]:
        """(8), by way of (6)."""
        batch = self.batch
        g, g_n, w = batch.split(self.g), batch.split_states(self.g_n), batch.split_weight(self.w)
        found = {}
        for k in batch.each():
            delta = loop_delta(g[k], g_n[k], self.h[k], w[k[0]], self.nonlinearity)
            found[k] = np.stack([DERIVATIVE[self.nonlinearity](h) * d for h, d in zip(self.h[k], delta, strict=True)])
        return found


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
def test_recurrence(layout: str, nonlinearity: str, seed: int) -> None:
    """(R)"""
    case = Recurrence(layout, nonlinearity, seed)
    h, h_n = case.run(case.u, case.h0, case.w)
    check(h, case.batch.join(case.h), "h")
    check(h_n, case.batch.last(case.h), "h_n")


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
def test_bptt_is_the_linear_recurrence(layout: str, nonlinearity: str, seed: int) -> None:
    """(11): one call of (L), reversed and with W transposed, gives phi'(h) * delta for all t."""
    case = Recurrence(layout, nonlinearity, seed)
    h, _ = case.run(case.u, case.h0, case.w)
    back = tuple(-d for d in case.batch.direction)
    s, s_first = ops.linear_recurrence(
        case.g, case.g_n, case.w, h, *case.batch.ragged, None, None, nonlinearity, "product", True, back
    )
    by_hand = case.s()
    check(s, case.batch.join(by_hand), "s")
    check(s_first, case.batch.join_states({k: v[0] for k, v in by_hand.items()}), "s_1")


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
def test_recurrence_gradients(layout: str, nonlinearity: str, seed: int) -> None:
    """(8) to (10) for (R) by itself, in groups with directions."""
    case = Recurrence(layout, nonlinearity, seed)
    batch = case.batch
    arguments = [t.clone().requires_grad_() for t in (case.u, case.h0, case.w)]
    u_bar, h0_bar, w_bar = torch.autograd.grad(case.run(*arguments), arguments, [case.g, case.g_n])
    s, h0, w = case.s(), batch.split_states(case.h0), batch.split_weight(case.w)
    check(u_bar, batch.join(s), "u_bar")
    check(h0_bar, batch.join_states({k: w[k[0]].T @ s[k][0] for k in batch.each()}), "h0_bar")
    expected = np.zeros_like(w)
    for k in batch.each():
        expected[k[0]] += outer_sum(s[k], case.h[k], h0[k])
    check(w_bar, expected, "W_bar")


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
def test_recurrence_tangent(layout: str, nonlinearity: str, seed: int) -> None:
    """(12)"""
    case = Recurrence(layout, nonlinearity, seed)
    batch = case.batch
    primals = (case.u, case.h0, case.w)
    tangents = [torch.from_numpy(case.rng.standard_normal(t.shape)) for t in primals]
    with forward_ad.dual_level():
        h, h_n = case.run(*(forward_ad.make_dual(p, t) for p, t in zip(primals, tangents, strict=True)))
        h_dot, h_n_dot = forward_ad.unpack_dual(h).tangent, forward_ad.unpack_dual(h_n).tangent
    h0, w = batch.split_states(case.h0), batch.split_weight(case.w)
    u_dot, h0_dot, w_dot = batch.split(tangents[0]), batch.split_states(tangents[1]), batch.split_weight(tangents[2])
    expected = {}
    for k in batch.each():
        group = k[0]
        expected[k] = np.zeros_like(case.h[k])
        for t in range(len(case.h[k])):
            expected[k][t] = DERIVATIVE[nonlinearity](case.h[k][t]) * (
                u_dot[k][t] + w_dot[group] @ before(case.h[k], h0[k], t) + w[group] @ before(expected[k], h0_dot[k], t)
            )
    check(h_dot, batch.join(expected), "h_dot")
    check(h_n_dot, batch.last(expected), "h_n_dot")


class Linear:
    """Random arguments of (L) and, for each sequence, what its loops need."""

    def __init__(self, layout: str, derivative: str, seed_kind: str, transpose: bool, seed: int) -> None:
        self.rng = rng = np.random.default_rng(seed)
        self.batch = batch = Batch.generate(layout, rng)
        self.options = (derivative, seed_kind, transpose)
        columns = batch.groups * batch.hidden
        self.v, self.factor = batch.rows(rng, columns), batch.rows(rng, columns)
        if derivative == "tanh":
            self.factor = self.factor.tanh()
        elif derivative == "relu":
            self.factor = self.factor.relu()
        else:
            # y / d would fail here.
            self.factor.view(-1)[0] = 0
        self.seed, self.w = batch.states(rng), batch.weight(rng)

        self.d = {k: DERIVATIVE[derivative](f) for k, f in batch.split(self.factor).items()}
        self.m = self.matrices(self.w)
        seed_of, v = batch.split_states(self.seed), batch.split(self.v)
        state = seed_kind == "state"
        # M y_0, or what stands for it; and y_0, which for a product nothing multiplies.
        self.product = {k: self.m[k[0]] @ seed_of[k] if state else seed_of[k] for k in batch.each()}
        self.y0 = {k: seed_of[k] if state else np.zeros(batch.hidden) for k in batch.each()}
        self.y = {k: loop_l(v[k], self.d[k], self.m[k[0]], self.product[k]) for k in batch.each()}

    @property
    def arguments(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.v, self.seed, self.w, self.factor

    def matrices(self, w: Tensor) -> Array:
        """``(G, H, H)``: each group's M."""
        square = self.batch.split_weight(w)
        return square.transpose(0, 2, 1) if self.options[2] else square

    def run(self, v: Tensor, seed: Tensor, w: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
        return ops.linear_recurrence(
            v, seed, w, factor, *self.batch.ragged, None, None, *self.options, self.batch.direction
        )


every_option = pytest.mark.parametrize(
    ("derivative", "seed_kind", "transpose", "seed"),
    [
        (derivative, seed_kind, transpose, seed)
        for derivative in DERIVATIVE
        for seed_kind in ("state", "product")
        for transpose in (False, True)
        for seed in range(2)
    ],
)


@every_option
def test_linear_recurrence(layout: str, derivative: str, seed_kind: str, transpose: bool, seed: int) -> None:
    """(L), with (7) where d is a derivative, and both kinds of seed."""
    case = Linear(layout, derivative, seed_kind, transpose, seed)
    y, y_n = case.run(*case.arguments)
    check(y, case.batch.join(case.y), "y")
    check(y_n, case.batch.last(case.y), "y_n")


@every_option
def test_linear_recurrence_gradients(layout: str, derivative: str, seed_kind: str, transpose: bool, seed: int) -> None:
    """(13) to (15)"""
    case = Linear(layout, derivative, seed_kind, transpose, seed)
    batch = case.batch
    y_bar, y_n_bar = torch.from_numpy(case.rng.standard_normal(case.v.shape)), batch.states(case.rng)
    arguments = [t.clone().requires_grad_() for t in case.arguments]
    gradients = torch.autograd.grad(
        case.run(*arguments), arguments, [y_bar, y_n_bar], allow_unused=True, materialize_grads=True
    )
    v, y_bars, y_n_bars = batch.split(case.v), batch.split(y_bar), batch.split_states(y_n_bar)
    factor = batch.split(case.factor)
    m_bar = np.zeros_like(case.m)
    v_bar, seed_bar, factor_bar = {}, {}, {}
    for k in batch.each():
        m = case.m[k[0]]
        found = loop_l_gradients(v[k], case.d[k], m, case.product[k], case.y0[k], case.y[k], y_bars[k], y_n_bars[k])
        m_bar[k[0]] += found.m
        v_bar[k] = found.v
        seed_bar[k] = m.T @ found.product if seed_kind == "state" else found.product
        factor_bar[k] = SECOND_DERIVATIVE[derivative](factor[k]) * found.d
    w_bar = m_bar.transpose(0, 2, 1) if transpose else m_bar
    check(gradients[0], batch.join(v_bar), "v_bar")
    check(gradients[1], batch.join_states(seed_bar), "seed_bar")
    check(gradients[2], np.ascontiguousarray(w_bar), "W_bar")
    check(gradients[3], batch.join(factor_bar), "factor_bar")


@every_option
def test_linear_recurrence_tangent(layout: str, derivative: str, seed_kind: str, transpose: bool, seed: int) -> None:
    """(16), along all four arguments at once."""
    case = Linear(layout, derivative, seed_kind, transpose, seed)
    batch = case.batch
    tangents = [torch.from_numpy(case.rng.standard_normal(t.shape)) for t in case.arguments]
    with forward_ad.dual_level():
        y, y_n = case.run(*(forward_ad.make_dual(p, t) for p, t in zip(case.arguments, tangents, strict=True)))
        y_dot, y_n_dot = forward_ad.unpack_dual(y).tangent, forward_ad.unpack_dual(y_n).tangent
    v_dot, seed_dot = batch.split(tangents[0]), batch.split_states(tangents[1])
    m_dot, factor_dot = case.matrices(tangents[2]), batch.split(tangents[3])
    v, factor = batch.split(case.v), batch.split(case.factor)
    expected = {}
    for k in batch.each():
        g = k[0]
        d_dot = SECOND_DERIVATIVE[derivative](factor[k]) * factor_dot[k]
        product_dot = case.m[g] @ seed_dot[k] if seed_kind == "state" else seed_dot[k]
        expected[k] = loop_l_tangent(
            v[k], case.d[k], case.m[g], case.product[k], case.y0[k], case.y[k], v_dot[k], d_dot, m_dot[g], product_dot
        )
    check(y_dot, batch.join(expected), "y_dot")
    check(y_n_dot, batch.last(expected), "y_n_dot")


def test_linear_loops_against_finite_differences() -> None:
    """(14) to (16) by hand agree with differences of (L) by hand."""
    rng = np.random.default_rng(3)
    steps, hidden, step = 6, 5, 1e-6
    shapes = {"v": (steps, hidden), "d": (steps, hidden), "m": (hidden, hidden), "y0": (hidden,)}
    at = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    dot = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    y_bar, y_n_bar = rng.standard_normal((steps, hidden)), rng.standard_normal(hidden)

    def run(v: Array, d: Array, m: Array, y0: Array) -> Array:
        return loop_l(v, d, m, m @ y0)

    up, down = (run(**{name: at[name] + sign * step * dot[name] for name in at}) for sign in (1, -1))
    differences = (up - down) / (2 * step)
    v, d, m, y0 = at["v"], at["d"], at["m"], at["y0"]
    y = run(**at)
    y_dot = loop_l_tangent(v, d, m, m @ y0, y0, y, dot["v"], dot["d"], dot["m"], m @ dot["y0"])
    np.testing.assert_allclose(y_dot, differences, rtol=1e-6, atol=1e-6 * np.abs(y_dot).max())

    bar = loop_l_gradients(v, d, m, m @ y0, y0, y, y_bar, y_n_bar)
    gradients = {"v": bar.v, "d": bar.d, "m": bar.m, "y0": m.T @ bar.product}
    predicted = sum((gradients[name] * dot[name]).sum() for name in at)
    assert (y_bar * differences).sum() + y_n_bar @ differences[-1] == pytest.approx(predicted, rel=1e-6)
