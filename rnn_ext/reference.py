"""The primitives in plain PyTorch: the oracle of the tests, and what runs where no kernel is built.

Written for clarity: a Python loop over time, differentiated by autograd. Arguments and results are those of the
ops (``csrc/ops.cpp``), for any device and dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"tanh": torch.tanh, "relu": torch.relu}

# d as a function of the factor, for linear_recurrence.
DERIVATIVES: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": lambda h: 1 - h * h,
    # Of a NaN it is 1, as torch.relu has it: what went wrong must show.
    "relu": lambda h: (~(h <= 0)).to(h.dtype),
    "given": lambda d: d,
}


def _scan(
    shape: tuple[int, int, int],
    step: Callable[[int, Tensor, Tensor], Tensor],
    state: Tensor | None,
    product: Tensor | None,
    arrive: Callable[[int, Tensor], Tensor],
    lengths: Tensor | None,
    reset: Tensor | None,
    direction: int,
    like: Tensor,
) -> tuple[Tensor, Tensor]:
    """One group through time. ``arrive(t, y_{t-1})`` is what arrives of all rows' states, ``M y_{t-1}`` unless they
    leak, and ``step(t, what arrives, y_{t-1})`` makes the new ones."""
    steps, batch, hidden = shape
    zeros = like.new_zeros(batch, hidden)
    state = zeros if state is None else state
    # (B, 1) booleans: the rows whose first step is behind them, so that M y applies to them.
    begun = None
    outputs: list[Tensor] = [zeros] * steps
    for t in range(steps) if direction == 1 else range(steps - 1, -1, -1):
        if reset is not None and begun is not None:
            # Between this step and the one before it, in either direction, for the rows that are in both.
            cut = begun & reset[max(t, t - direction)].unsqueeze(1)
            if lengths is not None:
                cut = cut & (lengths > t).unsqueeze(1).to(like.device)
            state = torch.where(cut, zeros, state)
        arrived = arrive(t, state)
        if product is not None:
            arrived = product if begun is None else torch.where(begun, arrived, product)
        new = step(t, arrived, state)
        if lengths is None:
            outputs[t] = state = new
            begun = torch.ones(batch, 1, dtype=torch.bool, device=like.device)
        else:
            alive = (lengths > t).unsqueeze(1).to(like.device)
            outputs[t] = torch.where(alive, new, zeros)
            state = torch.where(alive, new, state)
            begun = alive if begun is None else begun | alive
    return (torch.stack(outputs) if steps else like.new_zeros(shape)), state


# At one step, or at the one before.
Rows = Sequence[Tensor | None]


def _product(now: Rows, before: Rows, y: Tensor, m: Callable[[Tensor], Tensor]) -> Tensor:
    return m(y)


def _run(
    sequences: Rows,
    cell: Callable[[Rows, Tensor, Tensor], Tensor],
    seed: Tensor | None,
    seed_kind: str,
    w: Tensor,
    transpose: bool,
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    reset: Tensor | None,
    mask: Tensor | None,
    direction: Sequence[int],
    arrive: Callable[[Rows, Rows, Tensor, Callable[[Tensor], Tensor]], Tensor] = _product,
) -> tuple[Tensor, Tensor]:
    """All groups.

    Args:
        sequences: what each step has rows of.
        cell: ``(their rows, what arrives, y_{t-1})`` to the new state.
        seed: as of the primitives; and so are those that follow.
        arrive: ``(their rows, those of the step before, y_{t-1}, M as a function)`` to what arrives. At a first step
            the rows before are any, and so is what arrives of a state that is zero.
    """
    if batch_sizes is not None:
        # Spread over (T, B), run, and packed again: row i of step t lies batch_sizes[0] + ... + batch_sizes[t-1] + i.
        alive = batch_sizes.unsqueeze(1) > torch.arange(int(batch_sizes[0]))
        at = (alive.flatten().cumsum(0) - 1).clamp(min=0).view(alive.shape).to(w.device)
        padded = [x if x is None else x[at] for x in sequences]
        output, last = _run(
            padded, cell, seed, seed_kind, w, transpose, None, alive.sum(0), None, mask, direction, arrive
        )
        return output[alive.nonzero(as_tuple=True)], last
    hidden = w.shape[1]
    like = next(x for x in reversed(sequences) if x is not None)

    def group(g: int, d: int) -> tuple[Tensor, Tensor]:
        columns = slice(g * hidden, (g + 1) * hidden)
        parts = [x if x is None else x[..., columns] for x in sequences]

        def multiply(y: Tensor) -> Tensor:
            if mask is None:
                return y @ (w[columns] if transpose else w[columns].t())
            return mask[g] * (y @ w[columns]) if transpose else (mask[g] * y) @ w[columns].t()

        def rows(t: int) -> Rows:
            return [x if x is None else x[max(0, min(t, len(x) - 1))] for x in parts]

        def step(t: int, arrived: Tensor, y: Tensor) -> Tensor:
            return cell(rows(t), arrived, y)

        def arriving(t: int, y: Tensor) -> Tensor:
            return arrive(rows(t), rows(t - d), y, multiply)

        start = None if seed is None else seed[g]
        state, product = (start, None) if seed_kind == "state" else (None, start)
        return _scan((*like.shape[:2], hidden), step, state, product, arriving, lengths, reset, d, like)

    outputs, lasts = [], []
    for g, d in enumerate(direction):
        y, y_last = group(g, d)
        outputs.append(y)
        lasts.append(y_last)
    if not outputs:
        return like.new_zeros(like.shape), like.new_zeros(0, like.shape[1], hidden)
    return torch.cat(outputs, -1), torch.stack(lasts)


def recurrence(
    u: Tensor,
    h0: Tensor | None,
    w: Tensor,
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    reset: Tensor | None,
    mask: Tensor | None,
    leak: Tensor | None,
    nonlinearity: str,
    direction: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """``h_t = z_t * h_{t-1} + (1 - z_t) * phi(u_t + W h_{t-1})``; see ``rnn_ext.ops.recurrence``."""
    activation = ACTIVATIONS[nonlinearity]
    leak = None if leak is None else leak.to(u.dtype)

    def cell(rows: Rows, product: Tensor, h: Tensor) -> Tensor:
        u_t, z_t = rows
        assert u_t is not None
        new = activation(u_t + product)
        return new if z_t is None else z_t * h + (1 - z_t) * new

    return _run([u, leak], cell, h0, "state", w, False, batch_sizes, lengths, reset, mask, direction)


def linear_recurrence(
    v: Tensor | None,
    seed: Tensor | None,
    w: Tensor,
    factor: Tensor,
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    reset: Tensor | None,
    mask: Tensor | None,
    derivative: str,
    seed_kind: str,
    transpose: bool,
    direction: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """``y_t = d_t * (v_t + M y_{t-1})``; see ``rnn_ext.ops.linear_recurrence``."""
    derivative_of = DERIVATIVES[derivative]

    def cell(rows: Rows, product: Tensor, y: Tensor) -> Tensor:
        v_t, factor_t = rows
        assert factor_t is not None
        return derivative_of(factor_t) * (product if v_t is None else v_t + product)

    return _run([v, factor], cell, seed, seed_kind, w, transpose, batch_sizes, lengths, reset, mask, direction)


def leaky_linear_recurrence(
    v: Tensor | None,
    seed: Tensor | None,
    w: Tensor,
    factor: Tensor,
    leak: Tensor,
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    reset: Tensor | None,
    mask: Tensor | None,
    seed_kind: str,
    transpose: bool,
    direction: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """``y_t = v_t + A_t y_{t-1}``; see ``rnn_ext.leaky.leaky_linear_recurrence``."""
    if seed is None:
        # Nothing arrives at a first step, whatever stands in the rows before it.
        seed, seed_kind = factor.new_zeros(_states_of(factor, w, batch_sizes, direction)), "product"

    leak = leak.to(factor.dtype)

    def arrive(now: Rows, before: Rows, y: Tensor, m: Callable[[Tensor], Tensor]) -> Tensor:
        _, d, z = before if transpose else now
        assert d is not None and z is not None
        return z * y + (m(d * y) if transpose else d * m(y))

    def cell(rows: Rows, arrived: Tensor, y: Tensor) -> Tensor:
        return arrived if rows[0] is None else rows[0] + arrived

    rows = (batch_sizes, lengths, reset)
    return _run([v, factor, leak], cell, seed, seed_kind, w, transpose, *rows, mask, direction, arrive)


def _states_of(
    sequence: Tensor, w: Tensor, batch_sizes: Tensor | None, direction: Sequence[int]
) -> tuple[int, int, int]:
    batch = sequence.shape[1] if batch_sizes is None else int(batch_sizes[0])
    return len(direction), batch, w.shape[1]
