"""What the tests share: how accuracy is judged, and generated problems."""

from __future__ import annotations

import torch
from torch import Tensor


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
