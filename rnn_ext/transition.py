"""The matrix that takes one step's state to the next step's sum, applied to a whole sequence at once.

Differentiable PyTorch, for the derivative formulas of ``ops.py``; in the kernels it is what ``csrc/recurrence.h`` says
of W, its mask and its transpose. Shapes are those of ``layout.py``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rnn_ext.gemm import addmm, matmul, product_of_columns
from rnn_ext.layout import Layout, by_run, packed_predecessors, packed_sequences, previous, states_to_rows


class Transition(NamedTuple):
    """``M = W diag(mask)`` for each group and sequence, or the transpose ``diag(mask) Wᵀ``.

    Attributes:
        w: ``(G*H, H)``.
        mask: ``(G, B, H)``, a constant; None for ones.
        transpose: whether M is the transpose.
        layout: of the sequences that it is applied to.
    """

    w: Tensor
    mask: Tensor | None
    transpose: bool
    layout: Layout

    @property
    def adjoint(self) -> Transition:
        """Mᵀ, with time turned round."""
        return self._replace(transpose=not self.transpose, layout=self.layout.reversed)

    def of(self, sequence: Tensor) -> Tensor:
        """``M y`` for every row of every group; shaped like ``sequence``, ``(T, B, G*H)`` or packed."""
        groups = len(self.layout.direction)
        if not self.transpose:
            sequence = self._masked(sequence)
        if groups == 1:
            product = matmul(sequence, self.w if self.transpose else self.w.t())
        else:
            rows = sequence.reshape(-1, groups, self.w.shape[1]).transpose(0, 1)
            product = self._of_states(rows).transpose(0, 1).reshape(sequence.shape)
        return self._masked(product) if self.transpose else product

    def of_states(self, states: Tensor) -> Tensor:
        """``M y`` for ``(G, B, H)`` states."""
        if self.mask is None:
            return self._of_states(states)
        return self.mask * self._of_states(states) if self.transpose else self._of_states(self.mask * states)

    def weight_gradient(
        self, s: Tensor, y: Tensor, batch: int, s_first: Tensor | None = None, seed: Tensor | None = None
    ) -> Tensor:
        """``(G*H, H)``: W̄ where M̄ is the sum over time of ``s_t y_{t-1}ᵀ``, as one GEMM over all rows of a group.

        Args:
            s: the gradient that arrives at each step's sum, a sequence.
            y: the states, a sequence.
            batch: B; the compiler cannot read it off packed sequences.
            s_first: ``(G, B, H)``, ``s`` at each sequence's first step; used only with ``seed``.
            seed: ``(G, B, H)``, the states before the first step; None if they were zero.
        """
        if self.mask is not None and self.transpose:
            s, s_first = self._masked(s), None if s_first is None else self.mask * s_first
        elif self.mask is not None:
            y, seed = self._masked(y), None if seed is None else self.mask * seed
        m_bar = _outer_products(s, y, self.layout, batch, s_first, seed)
        return _transposed_blocks(m_bar) if self.transpose else m_bar

    def _of_states(self, states: Tensor) -> Tensor:
        square = self.w.reshape(states.shape[0], self.w.shape[1], self.w.shape[1])
        return matmul(states, square if self.transpose else square.transpose(1, 2))

    def _masked(self, sequence: Tensor) -> Tensor:
        if self.mask is None:
            return sequence
        rows = states_to_rows(self.mask)
        batch_sizes = self.layout.batch_sizes
        if batch_sizes is not None:
            rows = rows.index_select(0, packed_sequences(batch_sizes, sequence.shape[0]).to(rows.device))
        return sequence * rows


def sums(v: Tensor | None, y: Tensor, seed: Tensor | None, seed_kind: str, m: Transition) -> Tensor:
    """``a_t = v_t + M y_{t-1}`` for all t, as one GEMM."""
    first = m.of_states(seed) if seed is not None and seed_kind == "state" else seed
    a = previous(m.of(y), first, m.layout)
    return a if v is None else a + v


def _outer_products(
    s: Tensor, y: Tensor, layout: Layout, batch: int, s_first: Tensor | None, seed: Tensor | None
) -> Tensor:
    """The sum over time of ``s_t y_{t-1}ᵀ`` of each group, one above the other."""
    hidden = y.shape[-1] // max(1, len(layout.direction))
    # By rows of steps but the first, of which there are as many only where B is a number, not the compiler's symbol.
    by_step = layout.batch_sizes is not None and isinstance(batch, int)
    shifted = layout.reset is not None or (layout.batch_sizes is not None and not by_step)
    if shifted:
        y, seed = previous(y, seed, layout), None
    blocks = []
    parts = zip(layout.runs(), by_run(s, layout), by_run(y, layout), strict=True)
    for (start, end, direction), s_rows, y_rows in parts:
        if layout.batch_sizes is not None and by_step:
            before = packed_predecessors(layout.batch_sizes, s.shape[0], batch).to(s.device)
            if direction == 1:
                s_rows, y_rows = s_rows[batch:], y_rows.index_select(0, before)
            else:
                s_rows, y_rows = s_rows.index_select(0, before), y_rows[batch:]
        elif not shifted:
            # Against each other by one step; views, so that the GEMM reads s and y where they are.
            s_rows, y_rows = (s_rows[1:], y_rows[:-1]) if direction == 1 else (s_rows[:-1], y_rows[1:])
        count = end - start
        if count == 1:
            block = product_of_columns(s_rows.reshape(-1, hidden), y_rows.reshape(-1, hidden))
        else:
            s_rows = s_rows.reshape(-1, count, hidden).permute(1, 2, 0)
            y_rows = y_rows.reshape(-1, count, hidden).transpose(0, 1)
            block = matmul(s_rows, y_rows).reshape(count * hidden, hidden)
        if seed is not None and s_first is not None:
            if count == 1:
                block = addmm(block, s_first[start].t(), seed[start])
            else:
                start_term = matmul(s_first[start:end].transpose(1, 2), seed[start:end])
                block = block + start_term.reshape(count * hidden, hidden)
        blocks.append(block)
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks)


def _transposed_blocks(w: Tensor) -> Tensor:
    """``(G*H, H)`` with each of its square blocks transposed."""
    hidden = w.shape[1]
    return w.t() if w.shape[0] == hidden else w.reshape(-1, hidden, hidden).transpose(1, 2).reshape(w.shape)
