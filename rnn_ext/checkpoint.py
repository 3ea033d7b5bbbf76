"""Long sequences in little memory: BPTT in chunks of time, whose states are computed again in backward.

A training step keeps T states a layer. Cut into chunks of k steps, with a checkpoint (``torch.utils.checkpoint``) for
each, it keeps the T / k states between chunks, and in backward the k states of the one chunk at work: least for k near
the square root of T. The price is a second forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def check_arguments(every: int, ragged: bool, return_all_layers: bool) -> None:
    """Raises ValueError for what cannot be checkpointed."""
    if not isinstance(every, int) or isinstance(every, bool) or every < 1:
        raise ValueError(f"checkpoint_every must be a positive int, got {every!r}")
    if ragged:
        raise ValueError(
            "checkpoint_every takes sequences of one length; got a packed sequence, a nested tensor or lengths"
        )
    if return_all_layers:
        raise ValueError("checkpoint_every keeps no layer's states, so it excludes return_all_layers")


def checkpointed(
    run: Callable[..., tuple[list[Tensor], Tensor]],
    x: Tensor,
    weights: Sequence[Sequence[Tensor]],
    hx: Tensor | None,
    reset: Tensor | None,
    masks: Sequence[Tensor | None],
    direction: Sequence[int],
    every: int,
    dropout: float,
) -> tuple[Tensor, Tensor]:
    """A stack of layers in chunks of ``every`` steps.

    Layers of one direction go through time together, so nothing but the last one's output is as long as the sequence.
    With two, a layer needs all of the one before, and each direction has chunks of its own.

    Args:
        run: ``(x, weights, hx, reset, masks, direction)`` to every layer's output and the last states, for a part of
            the time.
        x: ``(T, B, features)``.
        weights: by layer and direction.
        hx: ``(layers * directions, B, H)`` or None.
        reset: bool ``(T, B)`` or None.
        masks: of the recurrent connections, for each layer ``(directions, B, H)`` or None; the same for all chunks.
        direction: 1 and -1, of each direction.
        every: steps in a chunk.
        dropout: probability with which an output of a layer but the last is zeroed. Where layers go through time
            together, ``run`` does that, and the masks are drawn chunk by chunk.

    What ``run`` draws, zoneout too, is drawn in backward again from the same state of the generator: the gradients are
    those of the loss. It is drawn chunk by chunk, since to keep it would take as much memory as the states.

    Returns:
        ``(output, h_n)`` of the whole.
    """
    if len(direction) == 1:
        return _through_time(run, x, weights, hx, reset, masks, direction[0], every)
    states = []
    for k in range(0, len(weights), len(direction)):
        halves = []
        for d, way in enumerate(direction):
            own = slice(k + d, k + d + 1)
            mask = masks[k // len(direction)]
            own_masks = [mask if mask is None else mask[d : d + 1]]
            h0 = None if hx is None else hx[own]
            halves.append(_through_time(run, x, weights[own], h0, reset, own_masks, way, every))
        x = torch.cat([output for output, _ in halves], -1)
        if dropout and k + len(direction) < len(weights):
            x = F.dropout(x, dropout, True)
        states += [h_n for _, h_n in halves]
    return x, torch.cat(states)


def _through_time(
    run: Callable[..., tuple[list[Tensor], Tensor]],
    x: Tensor,
    weights: Sequence[Sequence[Tensor]],
    h: Tensor | None,
    reset: Tensor | None,
    masks: Sequence[Tensor | None],
    way: int,
    every: int,
) -> tuple[Tensor, Tensor]:
    def chunk_of(part: Tensor, h: Tensor | None, resets: Tensor | None) -> tuple[Tensor, Tensor]:
        outputs, h_n = run(part, weights, h, resets, masks, (way,))
        return outputs[-1], h_n

    chunks = x.split(every)
    resets = [None] * len(chunks) if reset is None else list(reset.split(every))
    outputs = []
    for n in range(len(chunks))[::way]:
        later = resets[n + 1] if way == -1 and n + 1 < len(chunks) else None
        if later is not None and h is not None:
            # Between this chunk and the one before it. Forward in time, that is the chunk's own first step.
            h = h.masked_fill(later[:1].unsqueeze(2), 0)
        output, h = checkpoint(chunk_of, chunks[n], h, resets[n], use_reentrant=False)
        outputs.append(output)
    assert h is not None
    return torch.cat(outputs if way == 1 else outputs[::-1]), h
