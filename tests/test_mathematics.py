"""The formulas of docs/mathematics.md, computed by hand and compared with autograd through rnn_ext.

By hand means: float64, one vector at a time, one sequence at a time, loops over time, no autograd. A sequence of a
ragged batch is then nothing but a shorter sequence, and a reversed group one that is read from its end. Numbers in
parentheses are those of the document.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torch.utils._pytree as pytree
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

from rnn_ext import functional, ops

Array = np.ndarray
# torch's own forward mode compiles some of its derivatives with torch.jit, and warns of it.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")

NONLINEARITIES = ["tanh", "relu"]
SEEDS = range(6)

# ---------------------------------------------------------------------------------------------------------------------
# By hand. A sequence is (T, H), in its own order of time; its index t - 1 holds step t.
# ---------------------------------------------------------------------------------------------------------------------

PHI = {"tanh": np.tanh, "relu": lambda a: np.maximum(a, 0.0)}
# (7), and for (L) a factor that is d itself.
DERIVATIVE = {
    "tanh": lambda h: 1 - h * h,
    "relu": lambda h: (h > 0).astype(np.float64),
    "given": lambda d: d,
}
# The derivative of (7) with respect to h.
SECOND_DERIVATIVE = {"tanh": lambda h: -2 * h, "relu": np.zeros_like, "given": np.ones_like}


def before(y: Array, first: Array, t: int) -> Array:
    """``y_{t-1}`` at index t."""
    return first if t == 0 else y[t - 1]


def loop_r(u: Array, h0: Array, w: Array, nonlinearity: str) -> Array:
    """(R)"""
    h = np.zeros_like(u)
    for t in range(len(u)):
        h[t] = PHI[nonlinearity](u[t] + w @ before(h, h0, t))
    return h


def loop_l(v: Array, d: Array, m: Array, product: Array) -> Array:
    """(L), where ``product`` is ``M y_0``."""
    y = np.zeros_like(d)
    for t in range(len(d)):
        y[t] = d[t] * (v[t] + (product if t == 0 else m @ y[t - 1]))
    return y


def loop_delta(g: Array, g_n: Array, h: Array, w: Array, nonlinearity: str) -> Array:
    """(6)"""
    delta = np.zeros_like(h)
    delta[-1] = g[-1] + g_n
    for t in range(len(h) - 2, -1, -1):
        delta[t] = g[t] + w.T @ (DERIVATIVE[nonlinearity](h[t + 1]) * delta[t + 1])
    return delta


def outer_sum(s: Array, y: Array, first: Array) -> Array:
    """``sum_t s_t y_{t-1}ᵀ``, as in (9) and (15)."""
    total = np.zeros((s.shape[1], y.shape[1]))
    for t in range(len(s)):
        total += np.outer(s[t], before(y, first, t))
    return total


@dataclass
class LinearGradients:
    """(13) to (15) of one sequence."""

    v: Array
    m: Array
    product: Array
    d: Array


def loop_l_gradients(
    v: Array, d: Array, m: Array, product: Array, y0: Array, y: Array, y_bar: Array, y_n_bar: Array
) -> LinearGradients:
    """(13) to (15); ``y_0`` is zero where the seed is a product, which M does not multiply."""
    steps = len(d)
    a_bar, d_bar = np.zeros_like(d), np.zeros_like(d)
    for t in range(steps - 1, -1, -1):
        a = v[t] + (product if t == 0 else m @ y[t - 1])
        q = y_bar[t] + (y_n_bar if t == steps - 1 else m.T @ a_bar[t + 1])
        a_bar[t] = d[t] * q
        d_bar[t] = q * a
    return LinearGradients(a_bar, outer_sum(a_bar, y, y0), a_bar[0], d_bar)


def loop_l_tangent(
    v: Array,
    d: Array,
    m: Array,
    product: Array,
    y0: Array,
    y: Array,
    v_dot: Array,
    d_dot: Array,
    m_dot: Array,
    product_dot: Array,
) -> Array:
    """(16), where ``product_dot`` stands for ``M ẏ_0``, or is the tangent of a seed that is a product."""
    e, z = np.zeros_like(d), np.zeros_like(d)
    zero = np.zeros(d.shape[1])
    for t in range(len(d)):
        a = v[t] + (product if t == 0 else m @ y[t - 1])
        e[t] = d_dot[t] * a
        carried = product_dot if t == 0 else m @ z[t - 1]
        z[t] = d[t] * (v_dot[t] + m_dot @ before(y, y0, t) + m @ before(e, zero, t) + carried)
    return z + e


# ---------------------------------------------------------------------------------------------------------------------
# Batches, of any layout, as lists of such sequences.
# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class Batch:
    """A generated shape: T, B, groups of H with their directions, and how long each row is."""

    layout: str  # "padded": all rows are T long; "lengths": padded, ragged; "packed"
    lengths: list[int]
    steps: int
    hidden: int
    direction: tuple[int, ...]

    @classmethod
    def generate(cls, layout: str, rng: np.random.Generator, groups: int | None = None) -> Batch:
        steps, size = int(rng.integers(1, 10)), int(rng.integers(1, 6))
        lengths = [steps] * size if layout == "padded" else [int(n) for n in rng.integers(1, steps + 1, size)]
        if layout == "packed":
            lengths.sort(reverse=True)
            steps = lengths[0]
        groups = int(rng.integers(1, 4)) if groups is None else groups
        direction = tuple(int(d) for d in rng.choice([1, -1], groups))
        return cls(layout, lengths, steps, int(rng.integers(1, 20)), direction)

    @property
    def size(self) -> int:
        return len(self.lengths)

    @property
    def groups(self) -> int:
        return len(self.direction)

    @property
    def ragged(self) -> tuple[Tensor | None, Tensor | None]:
        """``batch_sizes`` and ``lengths``, as the ops take them."""
        if self.layout == "packed":
            return torch.tensor([sum(n > t for n in self.lengths) for t in range(self.steps)]), None
        return None, torch.tensor(self.lengths) if self.layout == "lengths" else None

    def rows(self, rng: np.random.Generator, features: int) -> Tensor:
        """A random sequence tensor. Where a padded row has ended there are random numbers too."""
        count = (sum(self.lengths),) if self.layout == "packed" else (self.steps, self.size)
        return torch.from_numpy(rng.standard_normal((*count, features)))

    def states(self, rng: np.random.Generator) -> Tensor:
        return torch.from_numpy(rng.standard_normal((self.groups, self.size, self.hidden)))

    def weight(self, rng: np.random.Generator) -> Tensor:
        scale = 1 / np.sqrt(self.hidden)
        return torch.from_numpy(rng.uniform(-scale, scale, (self.groups * self.hidden, self.hidden)))

    def at(self, t: int, row: int) -> tuple[int, ...]:
        """Where the row's step with index t is in a sequence tensor."""
        if self.layout == "packed":
            return (sum(min(n, t) for n in self.lengths) + row,)
        return (t, row)

    def each(self) -> list[tuple[int, int]]:
        """``(group, row)`` of every sequence."""
        return [(g, i) for g in range(self.groups) for i in range(self.size)]

    def split(self, tensor: Tensor) -> dict[tuple[int, int], Array]:
        """A ``(..., G*H)`` tensor as one ``(T_i, H)`` array for each group and row, in the group's own time."""
        found = {}
        features = tensor.shape[-1] // self.groups
        for g, i in self.each():
            columns = slice(g * features, (g + 1) * features)
            sequence = [tensor[self.at(t, i)][columns].numpy() for t in range(self.lengths[i])]
            found[g, i] = np.stack(sequence[:: self.direction[g]])
        return found

    def join(self, sequences: dict[tuple[int, int], Array]) -> Tensor:
        """The way back; zero where a padded row has ended."""
        features = sequences[0, 0].shape[1]
        tensor = torch.zeros_like(self.rows(np.random.default_rng(0), self.groups * features))
        for (g, i), sequence in sequences.items():
            for t, vector in enumerate(sequence[:: self.direction[g]]):
                tensor[self.at(t, i)][g * features : (g + 1) * features] = torch.from_numpy(vector.copy())
        return tensor

    def last(self, sequences: dict[tuple[int, int], Array]) -> Tensor:
        """``(G, B, H)``: each sequence's last vector, in its own time."""
        return self.join_states({key: sequence[-1] for key, sequence in sequences.items()})

    def split_states(self, states: Tensor) -> dict[tuple[int, int], Array]:
        return {(g, i): states[g, i].numpy() for g, i in self.each()}

    def join_states(self, vectors: dict[tuple[int, int], Array]) -> Tensor:
        return torch.from_numpy(
            np.stack([np.stack([vectors[g, i] for i in range(self.size)]) for g in range(self.groups)])
        )

    def split_weight(self, w: Tensor) -> Array:
        """``(G, H, H)``"""
        return w.numpy().reshape(self.groups, self.hidden, self.hidden)


def check(actual: Tensor, by_hand: Tensor | Array, what: str) -> None:
    expected = torch.as_tensor(by_hand).reshape(actual.shape)
    torch.testing.assert_close(actual.detach(), expected, rtol=1e-9, atol=1e-11, msg=lambda m: f"{what}: {m}")


@pytest.fixture(params=["padded", "lengths", "packed"])
def layout(request: pytest.FixtureRequest) -> str:
    return request.param


# ---------------------------------------------------------------------------------------------------------------------
# The model: (1) to (10), through rnn_ext.functional.rnn.
# ---------------------------------------------------------------------------------------------------------------------

PARAMETERS = ["x", "h0", "u", "w", "b_ih", "b_hh", "v", "c"]


class Model:
    """An Elman network with a softmax output, and a term of the loss on the last states: by hand, and by rnn_ext."""

    def __init__(self, layout: str, nonlinearity: str, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.nonlinearity = nonlinearity
        self.batch = batch = Batch.generate(layout, rng, groups=1)
        # functional.rnn's first direction is always forward in time.
        batch.direction = (1,)
        inputs, classes = int(rng.integers(1, 9)), int(rng.integers(2, 7))
        hidden = batch.hidden
        draw = rng.standard_normal
        self.p: dict[str, Tensor] = {
            "x": batch.rows(rng, inputs),
            "h0": batch.states(rng),
            "u": torch.from_numpy(draw((hidden, inputs))) / np.sqrt(inputs),
            "w": batch.weight(rng),
            "b_ih": torch.from_numpy(draw(hidden)),
            "b_hh": torch.from_numpy(draw(hidden)),
            "v": torch.from_numpy(draw((classes, hidden))),
            "c": torch.from_numpy(draw(classes)),
        }
        self.targets = [rng.integers(classes, size=n) for n in batch.lengths]
        # The loss has the term p·h_n, so that this arrives at the last states.
        self.g_n = batch.states(rng)

    def by_hand(self) -> dict[str, Array | Tensor]:
        """All of (1) to (10): values under their own names, gradients with ``_bar``."""
        batch, phi = self.batch, self.nonlinearity
        p = {name: value.numpy() for name, value in self.p.items()}
        bias = p["b_ih"] + p["b_hh"]
        x, h0, g_n = batch.split(self.p["x"]), batch.split_states(self.p["h0"]), batch.split_states(self.g_n)
        loss = 0.0
        bars = {name: np.zeros_like(p[name]) for name in ("u", "w", "v", "c")}
        b_bar = np.zeros_like(bias)
        h, o, r_bar, g, delta, s, x_bar, h0_bar = ({} for _ in range(8))
        for key in batch.each():
            steps, k = len(x[key]), self.targets[key[1]]
            u = np.stack([p["u"] @ x[key][t] + bias for t in range(steps)])  # (1)
            h[key] = loop_r(u, h0[key], p["w"], phi)
            r = np.stack([p["v"] @ h[key][t] + p["c"] for t in range(steps)])  # (2)
            o[key] = np.stack([np.exp(r[t] - r[t].max()) / np.exp(r[t] - r[t].max()).sum() for t in range(steps)])
            loss += sum(-np.log(o[key][t][k[t]]) for t in range(steps)) + g_n[key] @ h[key][-1]  # (3)

            unit = np.eye(len(p["c"]))
            r_bar[key] = np.stack([o[key][t] - unit[k[t]] for t in range(steps)])  # (4)
            for t in range(steps):  # (5)
                bars["v"] += np.outer(r_bar[key][t], h[key][t])
                bars["c"] += r_bar[key][t]
            g[key] = np.stack([p["v"].T @ r_bar[key][t] for t in range(steps)])

            delta[key] = loop_delta(g[key], g_n[key], h[key], p["w"], phi)  # (6)
            s[key] = np.stack([DERIVATIVE[phi](h[key][t]) * delta[key][t] for t in range(steps)])  # (8)
            for t in range(steps):  # (9)
                bars["u"] += np.outer(s[key][t], x[key][t])
                bars["w"] += np.outer(s[key][t], before(h[key], h0[key], t))
                b_bar += s[key][t]
            x_bar[key] = np.stack([p["u"].T @ s[key][t] for t in range(steps)])  # (10)
            h0_bar[key] = p["w"].T @ s[key][0]
        return {
            "loss": np.float64(loss),
            **{name: batch.join(value) for name, value in (("h", h), ("o", o), ("r_bar", r_bar), ("g", g), ("s", s))},
            "delta": batch.join(delta),
            "h_n": batch.last(h),
            "x_bar": batch.join(x_bar),
            "h0_bar": batch.join_states(h0_bar),
            **{f"{name}_bar": value for name, value in bars.items()},
            "b_ih_bar": b_bar,
            "b_hh_bar": b_bar,
        }

    def by_rnn_ext(self, p: dict[str, Tensor]) -> dict[str, Tensor]:
        """Values of interest of the same model, differentiable."""
        batch_sizes, lengths = self.batch.ragged
        weights = [(p["u"], p["w"], p["b_ih"], p["b_hh"])]
        h, h_n = functional.rnn(
            p["x"], weights, p["h0"], nonlinearity=self.nonlinearity, batch_sizes=batch_sizes, lengths=lengths
        )
        r = F.linear(h, p["v"], p["c"])
        steps = [(t, i) for i, n in enumerate(self.batch.lengths) for t in range(n)]
        alive = torch.stack([r[self.batch.at(t, i)] for t, i in steps])
        targets = torch.tensor([self.targets[i][t] for t, i in steps])
        loss = F.cross_entropy(alive, targets, reduction="sum") + (self.g_n * h_n).sum()
        return {"h": h, "h_n": h_n, "r": r, "loss": loss}

    def leaves(self) -> dict[str, Tensor]:
        return {name: value.clone().requires_grad_() for name, value in self.p.items()}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
def test_forward(layout: str, nonlinearity: str, seed: int) -> None:
    """(1) to (3)"""
    model = Model(layout, nonlinearity, seed)
    hand, ours = model.by_hand(), model.by_rnn_ext(model.p)
    for name in ("h", "h_n", "loss"):
        check(ours[name], hand[name], name)
    o = model.batch.split(ours["r"].softmax(-1))
    check(model.batch.join(o), hand["o"], "o")


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
def test_output_layer(layout: str, nonlinearity: str, seed: int) -> None:
    """(4) and (5)"""
    model = Model(layout, nonlinearity, seed)
    hand, p = model.by_hand(), model.leaves()
    ours = model.by_rnn_ext(p)
    r_bar, v_bar, c_bar = torch.autograd.grad(ours["loss"], [ours["r"], p["v"], p["c"]])
    check(r_bar, hand["r_bar"], "r_bar")
    check(v_bar, hand["v_bar"], "V_bar")
    check(c_bar, hand["c_bar"], "c_bar")
    check(r_bar @ p["v"], hand["g"], "g")


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
def test_delta_is_the_whole_gradient_at_a_state(nonlinearity: str, seed: int) -> None:
    """(6): delta_t is the gradient of all the loss from step t on, with h_t an independent variable."""
    model = Model("padded", nonlinearity, seed)
    hand, p = model.by_hand(), model.p
    weights = [(p["u"], p["w"], p["b_ih"], p["b_hh"])]
    targets = torch.from_numpy(np.stack(model.targets, 1))
    for t in range(model.batch.steps):
        h_t = torch.as_tensor(hand["h"])[t].clone().requires_grad_()
        states, h_n = h_t.unsqueeze(0), h_t.unsqueeze(0)
        if t + 1 < model.batch.steps:
            later, h_n = functional.rnn(p["x"][t + 1 :], weights, h_n, nonlinearity=nonlinearity)
            states = torch.cat([states, later])
        logits = F.linear(states, p["v"], p["c"]).flatten(0, 1)
        loss = F.cross_entropy(logits, targets[t:].flatten(), reduction="sum") + (model.g_n * h_n).sum()
        (delta_t,) = torch.autograd.grad(loss, h_t)
        check(delta_t, torch.as_tensor(hand["delta"])[t], f"delta at index {t}")


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
def test_parameter_gradients(layout: str, nonlinearity: str, seed: int) -> None:
    """(8) to (10), of every parameter and input of the model, by one backward pass."""
    model = Model(layout, nonlinearity, seed)
    hand, p = model.by_hand(), model.leaves()
    gradients = torch.autograd.grad(model.by_rnn_ext(p)["loss"], [p[name] for name in PARAMETERS])
    for name, gradient in zip(PARAMETERS, gradients, strict=True):
        check(gradient, hand[f"{name}_bar"], f"{name}_bar")


@pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
def test_loops_against_finite_differences(layout: str, nonlinearity: str) -> None:
    """The loops above are right by a judge of their own: differences of the loss (3), which needs no derivative."""
    model = Model(layout, nonlinearity, 1)
    hand = model.by_hand()
    rng = np.random.default_rng(7)
    step = 1e-6
    for name in PARAMETERS:
        value = model.p[name]
        along = torch.from_numpy(rng.standard_normal(value.shape))
        losses = []
        for sign in (1, -1):
            model.p[name] = value + sign * step * along
            losses.append(model.by_hand()["loss"])
        model.p[name] = value
        predicted = (torch.as_tensor(hand[f"{name}_bar"]).reshape(value.shape) * along).sum().item()
        # The error of the difference is about step² times a third derivative, plus rounding of about 1e-15 / step.
        assert (losses[0] - losses[1]) / (2 * step) == pytest.approx(predicted, rel=1e-5, abs=1e-6), name


# ---------------------------------------------------------------------------------------------------------------------
# The primitives and their derivatives: (R), (L), (11) to (16), with groups and directions, through rnn_ext.ops.
# ---------------------------------------------------------------------------------------------------------------------


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


# ---------------------------------------------------------------------------------------------------------------------
# What the document says follows from the formulas.
# ---------------------------------------------------------------------------------------------------------------------


def layer_arguments(steps: int) -> tuple[Tensor, list[tuple[Tensor, ...]]]:
    torch.manual_seed(0)
    x = torch.randn(steps, 3, 6, requires_grad=True)
    return x, [tuple(torch.randn(shape, requires_grad=True) for shape in ((5, 6), (5, 5), (5,), (5,)))]


def test_only_h_is_saved() -> None:
    """Of all that grows with T, the graph of a layer holds its input and its output."""
    x, weights = layer_arguments(steps=50)
    saved: list[Tensor] = []

    def pack(t: Tensor) -> Tensor:
        saved.append(t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        output, _ = functional.rnn(x, weights)
    large = [t for t in saved if t.numel() >= 50]
    # By value: to ask for the address of the output, which is copied on write, would copy it.
    assert len(large) == 2
    assert any(torch.equal(t, x) for t in large)
    assert any(torch.equal(t, output) for t in large)


class CountCalls(TorchDispatchMode):
    """Counts the ops that reach a kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[str, int] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        name = func.overloadpacket.__name__
        self.counts[name] = self.counts.get(name, 0) + 1
        return func(*args, **(kwargs or {}))


def test_the_number_of_gemms_does_not_depend_on_time() -> None:
    """Backward is one call of (L), and one GEMM for each of x_bar, U_bar, W_bar, whatever T is."""
    counts = []
    for steps in (2, 200):
        x, weights = layer_arguments(steps)
        output, _ = functional.rnn(x, weights)
        with CountCalls() as calls:
            torch.autograd.grad(output.sum(), pytree.tree_leaves((x, weights)))
        counts.append(calls.counts)
    short, long = counts
    assert short == long
    assert long["linear_recurrence"] == 1
    assert sum(long.get(name, 0) for name in ("mm", "matmul", "bmm", "addmm")) == 3
