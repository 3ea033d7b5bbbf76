"""The two primitives in plain PyTorch: the oracle of the tests, and what runs where no kernel is built.

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
    step: Callable[[int, Tensor], Tensor],
    state: Tensor | None,
    product: Tensor | None,
    multiply: Callable[[Tensor], Tensor],
    lengths: Tensor | None,
    reset: Tensor | None,
    direction: int,
    like: Tensor,
) -> tuple[Tensor, Tensor]:
    """One group through time. ``step(t, M y_{t-1})`` makes the new state of all rows, ``multiply(y)`` is ``M y``."""
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
        carried = multiply(state)
        if product is not None:
            carried = product if begun is None else torch.where(begun, carried, product)
        new = step(t, carried)
        if lengths is None:
            outputs[t] = state = new
            begun = torch.ones(batch, 1, dtype=torch.bool, device=like.device)
        else:
            alive = (lengths > t).unsqueeze(1).to(like.device)
            outputs[t] = torch.where(alive, new, zeros)
            state = torch.where(alive, new, state)
            begun = alive if begun is None else begun | alive
    return (torch.stack(outputs) if steps else like.new_zeros(shape)), state


def _run(
    sequences: Sequence[Tensor | None],
    cell: Callable[[Sequence[Tensor | None], Tensor], Tensor],
    seed: Tensor | None,
    seed_kind: str,
    w: Tensor,
    transpose: bool,
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    reset: Tensor | None,
    mask: Tensor | None,
    direction: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """All groups. ``cell(the sequences' rows at one step, M y)`` is the new state."""
    if batch_sizes is not None:
        # Spread over (T, B), run, and packed again: row i of step t lies batch_sizes[0] + ... + batch_sizes[t-1] + i.
        alive = batch_sizes.unsqueeze(1) > torch.arange(int(batch_sizes[0]))
        at = (alive.flatten().cumsum(0) - 1).clamp(min=0).view(alive.shape).to(w.device)
        padded = [x if x is None else x[at] for x in sequences]
        output, last = _run(padded, cell, seed, seed_kind, w, transpose, None, alive.sum(0), None, mask, direction)
        return output[alive.nonzero(as_tuple=True)], last
    hidden = w.shape[1]
    like = next(x for x in reversed(sequences) if x is not None)
    outputs, lasts = [], []
    for g, d in enumerate(direction):
        columns = slice(g * hidden, (g + 1) * hidden)
        parts = [x if x is None else x[..., columns] for x in sequences]

        def multiply(y: Tensor, g: int = g, columns: slice = columns) -> Tensor:
            if mask is None:
                return y @ (w[columns] if transpose else w[columns].t())
            return mask[g] * (y @ w[columns]) if transpose else (mask[g] * y) @ w[columns].t()

        def step(t: int, carried: Tensor, parts: list[Tensor | None] = parts) -> Tensor:
            return cell([x if x is None else x[t] for x in parts], carried)

        start = None if seed is None else seed[g]
        state, product = (start, None) if seed_kind == "state" else (None, start)
        shape = (like.shape[0], like.shape[1], hidden)
        y, y_last = _scan(shape, step, state, product, multiply, lengths, reset, d, like)
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
    nonlinearity: str,
    direction: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """``h_t = phi(u_t + W h_{t-1})``; see ``rnn_ext.ops.recurrence``."""
    activation = ACTIVATIONS[nonlinearity]

    def cell(rows: Sequence[Tensor | None], product: Tensor) -> Tensor:
        (u_t,) = rows
        assert u_t is not None
        return activation(u_t + product)

    return _run([u], cell, h0, "state", w, False, batch_sizes, lengths, reset, mask, direction)


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

    def cell(rows: Sequence[Tensor | None], product: Tensor) -> Tensor:
        v_t, factor_t = rows
        assert factor_t is not None
        return derivative_of(factor_t) * (product if v_t is None else v_t + product)

    return _run([v, factor], cell, seed, seed_kind, w, transpose, batch_sizes, lengths, reset, mask, direction)
