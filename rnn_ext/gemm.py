"""Products of what the kernels are given by its weights, for the derivative formulas: PyTorch's GEMMs, on any device.

In 16 bits PyTorch has one that is made for the CPU only where oneDNN does: on x86 that takes AVX-512 and its BF16 or
FP16 extension. Elsewhere there are plain loops or an emulation, which take 3 to 40 times as long as float32's GEMM. So
there they are float32 products, rounded once, as in ``csrc/cpu/gemm.cpp``, which does the same for the plain ops.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rnn_ext import _C, dispatch

# As there: what a product must exceed for the conversions to be worth it, and how many columns are no longer few.
_WORTH_FLOAT = 1 << 15
_FEW_COLUMNS = 16
_NAMES = {torch.float16: "float16", torch.bfloat16: "bfloat16"}


def has_gemm(dtype: torch.dtype) -> bool:
    """Whether PyTorch's CPU GEMM of this dtype is made for this CPU."""
    return dtype not in _NAMES or _C.has_gemm(_NAMES[dtype])


def _in_their_dtype(product: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Without autocast, which would give another dtype than the kernels were given. What is to be cast has been."""

    @wraps(product)
    def run(a: Tensor, *rest: Any) -> Tensor:
        if not dispatch.autocasts(a.device):
            return product(a, *rest)
        with torch.autocast(a.device.type, enabled=False):
            return product(a, *rest)

    return run


@_in_their_dtype
def matmul(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b``: ``(..., n, k)`` by ``(..., k, m)``, of one dtype."""
    return (a.float() @ b.float()).to(a.dtype) if _by_float(a, b.shape[-1]) else a @ b


def product_of_columns(s: Tensor, x: Tensor) -> Tensor:
    """``sᵀ x``: ``(N, n)`` by ``(N, m)``, of one dtype: a weight's gradient; of few columns ``(xᵀ s)ᵀ``, as there."""
    (rows, units), columns = s.shape, x.shape[1]
    if s.is_cpu and not dispatch.recorded() and 1 < columns < _FEW_COLUMNS <= rows and units >= 2 * columns:
        return matmul(x.t(), s).t().contiguous()
    return matmul(s.t(), x)


@_in_their_dtype
def addmm(total: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """``total + a @ b``: matrices of one dtype."""
    if not _by_float(a, b.shape[1]):
        return torch.addmm(total, a, b)
    return torch.addmm(total.float(), a.float(), b.float()).to(a.dtype)


@_in_their_dtype
def linear(x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
    """``x Wᵀ + bias``: ``(..., I)`` by ``(O, I)`` and ``(O,)``, of one dtype."""
    if not _by_float(x, w.shape[0]):
        return F.linear(x, w, bias)
    return F.linear(x.float(), w.float(), None if bias is None else bias.float()).to(x.dtype)


def _by_float(a: Tensor, columns: int) -> bool:
    # What is recorded is to run elsewhere, too.
    if not a.is_cpu or a.dtype.itemsize != 2 or dispatch.recorded():
        return False
    return not has_gemm(a.dtype) and a.numel() * columns > _WORTH_FLOAT
