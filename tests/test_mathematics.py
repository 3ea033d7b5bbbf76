"""The model of docs/mathematics.md, (1) to (10), through rnn_ext.functional.rnn, beside the same by hand; and what the
document says follows from the formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torch.utils._pytree as pytree
from by_hand import DERIVATIVE, NONLINEARITIES, SEEDS, Array, Batch, before, check, loop_delta, loop_r
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from rnn_ext import functional

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
