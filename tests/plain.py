"""The plain ops beside the pieces that they stand for, and beside the oracle."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import torch
from helpers import assert_as_accurate
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from rnn_ext import gemm


class Watch(TorchDispatchMode):
    """Counts the ops that it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = Counter[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def results(module: nn.Module, x: Tensor, hx: Tensor | None, g: Tensor | None, g_n: Tensor | None) -> list[Tensor]:
    """The outputs, and the gradients of everything."""
    output, h_n = module(x, hx)
    given = [(t, grad) for t, grad in ((output, g), (h_n, g_n)) if grad is not None]
    wanted = [t for t in (x, hx, *module.parameters()) if t is not None]
    gradients = torch.autograd.grad([t for t, _ in given], wanted, [grad for _, grad in given], allow_unused=True)
    return [output, h_n, *(torch.zeros(()) if t is None else t for t in gradients)]


def compare_with_pieces(
    ours: nn.Module,
    theirs: nn.Module,
    x: Tensor,
    case: tuple[Tensor | None, Tensor | None, Tensor | None],
    layers: int,
    plain_calls: Counter[str],
    what: str,
    scale: float,
    same_bits: bool = False,
) -> None:
    """The plain ops' results and the pieces', with each other or, in another order of summation, with the oracle."""
    plain = results(ours, x, *case)
    called = plain_calls.copy()
    with Watch() as watch:
        pieces = results(ours, x, *case)
    assert plain_calls == called
    assert watch.calls["recurrence"] == watch.calls["linear_recurrence"] == layers
    if same_bits:
        # Products by way of float32 are rounded to 16 bits in fewer places by the op (gemm.cpp) than by the pieces.
        ulps = 0 if gemm.has_gemm(x.dtype) else 2
        # vdpbf16ps takes denormals for zeros, and not all of PyTorch's products are made of it: a term of a sum each.
        denormals = ours.hidden_size * torch.finfo(x.dtype).tiny if x.dtype == torch.bfloat16 else 0.0
        for mine, other in zip(plain, pieces, strict=True):
            off = (mine.double() - other.double()).abs().max().item()
            assert off <= ulps * torch.finfo(x.dtype).eps * other.abs().max().item() + denormals, what
        return
    inputs = [None if t is None else t.detach().double().requires_grad_(t.requires_grad) for t in (x, *case)]
    exact = results(copy.deepcopy(theirs).double(), *inputs)
    for compared in (plain, pieces):
        for mine, other, right in zip(compared, results(theirs, x, *case), exact, strict=True):
            assert_as_accurate(mine, other, right, what, scale=scale)


DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
