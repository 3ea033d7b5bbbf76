"""The formulas of docs/mathematics.md by hand, for the tests that compare them with autograd through rnn_ext.

By hand means: float64, one vector at a time, one sequence at a time, loops over time, no autograd. A sequence of a
ragged batch is then nothing but a shorter sequence, and a reversed group one that is read from its end. A sequence is
(T, H), in its own order of time; its index t - 1 holds step t. Numbers in parentheses are those of the document.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray

LAYOUTS = ["padded", "lengths", "packed"]
NONLINEARITIES = ["tanh", "relu"]
SEEDS = range(6)

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
