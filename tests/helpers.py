"""What the tests share: how accuracy is judged, and generated problems."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import rnn_ext


def assert_as_accurate(ours: Tensor, theirs: Tensor, exact: Tensor, what: str, scale: float = 0.0) -> None:
    """Our error is at most twice PyTorch's own in the same precision, both measured against float64.

    Args:
        ours: what rnn_ext computed.
        theirs: what plain PyTorch computed in the same precision from the same numbers.
        exact: the same in float64.
        what: named in the message.
        scale: size of the terms that were summed, where they may cancel; at least the result's own size.

    Raises:
        AssertionError: with the shape, the worst element and both errors.
    """
    assert ours.shape == exact.shape, f"{what}: shape {tuple(ours.shape)}, expected {tuple(exact.shape)}"
    assert ours.dtype == theirs.dtype, f"{what}: dtype {ours.dtype}, expected {theirs.dtype}"
    if exact.numel() == 0:
        return
    # Where PyTorch happens to be exact, a few roundings of the largest value are still fair; where it is itself the
    # float64 oracle, as many as separate two orders of summing some hundred terms.
    roundings = 4 if ours.dtype != torch.float64 else 32
    floor = roundings * torch.finfo(ours.dtype).eps * max(scale, exact.abs().max().item())
    our_error, their_error = (ours.double() - exact).abs(), (theirs.double() - exact).abs().max().item()
    bound = 2 * max(their_error, floor)
    worst = int(our_error.argmax())
    assert our_error.max().item() <= bound, (
        f"{what}: shape {tuple(ours.shape)}, element {worst} is off by {our_error.flatten()[worst].item():.3g}, "
        f"PyTorch in {ours.dtype} by at most {their_error:.3g}"
    )


@contextmanager
def tf32() -> Iterator[None]:
    """PyTorch's switch for its products on."""
    switch = torch.backends.cuda.matmul
    before = switch.fp32_precision
    switch.fp32_precision = "tf32"
    try:
        yield
    finally:
        switch.fp32_precision = before


def cell_loop(
    module: rnn_ext.RNN,
    x: Tensor,
    hx: Tensor,
    leaks: list[Tensor] | None = None,
    masks: list[Tensor] | None = None,
    reset: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The definition of a module's forward pass, a cell at a time.

    ``leaks`` are z of each layer, ``(T, B, directions * H)``, and ``masks`` m, ``(directions, B, H)``; None for none.
    """
    directions, hidden = 2 if module.bidirectional else 1, module.hidden_size
    if leaks is None:
        leaks = [x.new_zeros(len(x), 1, directions * hidden)] * module.num_layers
    phi = {"tanh": torch.tanh, "relu": torch.relu}[module.nonlinearity]
    states = []
    for k, leak in enumerate(leaks):
        outputs = []
        for d in range(directions):
            w_ih, w_hh, b_ih, b_hh = module.all_weights[k * directions + d]
            h, found = hx[k * directions + d], [Tensor()] * len(x)
            steps = range(len(x))[:: 1 - 2 * d]
            for t in steps:
                if reset is not None and (d == 0 or t != steps[0]):
                    h = h.masked_fill(reset[t + d].unsqueeze(1), 0)
                z = leak[t][:, d * hidden : (d + 1) * hidden]
                masked = h if masks is None else masks[k][d] * h
                h = z * h + (1 - z) * phi(F.linear(x[t], w_ih, b_ih) + F.linear(masked, w_hh, b_hh))
                found[t] = h
            outputs.append(torch.stack(found))
            states.append(h)
        x = torch.cat(outputs, -1)
    return x, torch.stack(states)


def ragged_cell_loop(
    module: rnn_ext.RNN,
    x: Tensor,
    hx: Tensor,
    lengths: list[int],
    leaks: list[Tensor] | None = None,
    masks: list[Tensor] | None = None,
    reset: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """:func:`cell_loop` of each sequence of a padded batch by itself, as long as it is; zeros after its end."""
    outputs, states = [], []
    for b, length in enumerate(lengths):
        own = slice(b, b + 1)
        output, h_n = cell_loop(
            module,
            x[:length, own],
            hx[:, own],
            None if leaks is None else [leak[:length, own] for leak in leaks],
            None if masks is None else [mask[:, own] for mask in masks],
            None if reset is None else reset[:length, own],
        )
        outputs.append(F.pad(output, (0, 0, 0, 0, 0, len(x) - length)))
        states.append(h_n)
    return torch.cat(outputs, 1), torch.cat(states, 1)


def call_ragged(kind: str, module: rnn_ext.RNN, x: Tensor, hx: Tensor, lengths: list[int]) -> tuple[Tensor, Tensor]:
    """A module's results for a padded batch, longest first, by way of "lengths", "packed" or "nested"; padded again."""
    if kind == "lengths":
        return module(x, hx, lengths=torch.tensor(lengths))
    rows = [x[:n, i] for i, n in enumerate(lengths)]
    if kind == "packed":
        packed, h_n = module(nn.utils.rnn.pack_sequence(rows), hx)
        return nn.utils.rnn.pad_packed_sequence(packed)[0], h_n
    nested, h_n = module(torch.nested.as_nested_tensor(rows, layout=torch.jagged), hx)
    return nn.utils.rnn.pad_sequence(list(nested.unbind())), h_n


def assert_same(module: rnn_ext.RNN, x: Tensor, hx: Tensor, *results: tuple[Tensor, Tensor]) -> None:
    """The same outputs, and the same gradients of a loss in which both of them are."""
    torch.testing.assert_close(*results)
    inputs = [x, hx, *module.parameters()]
    torch.testing.assert_close(*(torch.autograd.grad(y.sin().sum() + last.cos().sum(), inputs) for y, last in results))
