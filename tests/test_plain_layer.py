"""The CPU's ops for a plain layer beside the pieces that they stand for, which run where a dispatch mode watches, and
beside torch.nn.RNN. Where the kernel projects the input itself, in float32 and float64, and where so few rows are
multiplied that weights are not packed, sums have another order."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest
import torch
from plain import DTYPES, Watch, compare_with_pieces
from torch import Tensor

import rnn_ext
from rnn_ext import dispatch, gemm, layer

pytestmark = pytest.mark.skipif(not dispatch._HAS_ONE_OP, reason="this build has no plain ops")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("options", [{}, {"bidirectional": True}, {"num_layers": 2, "nonlinearity": "relu"}])
@pytest.mark.parametrize(
    ("time", "batch", "features", "hidden"),
    [
        *[(1, 1, 64, 64), (1, 3, 2, 7), (2, 1, 1, 1), (5, 3, 4, 7), (33, 5, 3, 17), (100, 1, 64, 64), (101, 17, 3, 64)],
        # So few rows that weights are not packed, and of them the last ones so many that W_ih is PyTorch's to multiply.
        *[(2, 1, 33, 37), (2, 3, 5, 67), (5, 1, 131, 131), (11, 1, 9, 97)],
    ],
)
def test_results_are_those_of_the_pieces(
    time: int,
    batch: int,
    features: int,
    hidden: int,
    options: dict[str, Any],
    bias: bool,
    dtype: torch.dtype,
    plain_calls: Counter[str],
) -> None:
    module = rnn_ext.RNN(features, hidden, bias=bias, **options).to(dtype)
    torch_module = rnn_ext.to_torch(copy.deepcopy(module))
    groups = len(module.all_weights)
    columns = hidden * (2 if module.bidirectional else 1)
    x = torch.randn(time, batch, features, dtype=dtype, requires_grad=True)
    hx = torch.randn(groups, batch, hidden, dtype=dtype, requires_grad=True)
    g, g_n = torch.randn(time, batch, columns, dtype=dtype), torch.randn(groups, batch, hidden, dtype=dtype)
    cases = [(hx, g, g_n), (None, g, None), (hx, None, g_n), (None, g[:1, :1, :1].expand(g.shape), None)]
    same_bits = dtype in (torch.float16, torch.bfloat16) and time * batch > 2
    # Weights' gradients are sums of T B terms of about 1 with either sign, and so are their errors.
    what, walk = f"{(time, batch, features, hidden)} {options}", (time * batch) ** 0.5
    for case in cases:
        compare_with_pieces(module, torch_module, x, case, module.num_layers, plain_calls, what, walk, same_bits)
    assert plain_calls["_plain_layer"] == plain_calls["_plain_layer_backward"] == len(cases) * module.num_layers
    expected = module(x, hx)
    with torch.inference_mode():
        assert all(map(torch.equal, module(x, hx), expected))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("options", "time"),
    [
        ({}, 73),
        ({}, 3),
        ({"num_layers": 2}, 73),
        ({"bidirectional": True}, 73),
        ({"bidirectional": True, "num_layers": 2}, 73),
        ({"bidirectional": True}, 3),
        ({"bidirectional": True}, 2),
    ],
)
def test_the_time_in_parts(
    time: int, options: dict[str, Any], bias: bool, dtype: torch.dtype, plain_calls: Counter[str]
) -> None:
    """Of backward, where there are rows enough; of two directions an odd number of parts, at most as many as steps. Not
    with ReLU: of some million sums one is so near to zero that float32 has it on the other side."""
    torch.set_num_threads(2)  # with many of them, parts are larger
    batch, features, hidden = 9490 // time, 5, 129
    test_results_are_those_of_the_pieces(time, batch, features, hidden, options, bias, dtype, plain_calls)


@pytest.mark.parametrize(("time", "batch"), [(7, 3), (73, 130), (1, 9001)])
def test_a_reversed_layer_is_the_layer_of_reversed_time(time: int, batch: int) -> None:
    torch.set_num_threads(2)  # with many of them, parts are larger
    features, hidden = 5, 129
    shapes = [(time, batch, features), (1, batch, hidden), (hidden, features), (hidden, hidden), (hidden,), (hidden,)]
    tensors = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    g, g_n = torch.randn(time, batch, hidden).double(), torch.randn(1, batch, hidden).double()

    def gradients(direction: int) -> list[Tensor]:
        x, h0, w_ih, w_hh, b_ih, b_hh = tensors
        x, given = (x, g) if direction == 1 else (x.flip(0), g.flip(0))
        rest = (None,) * 5
        h, h_n = layer.layer(x, [(w_ih, 0.1 * w_hh, b_ih, b_hh)], h0, "tanh", *rest, direction=(direction,))
        return list(torch.autograd.grad([h, h_n], tensors, [given, g_n]))

    torch.testing.assert_close(gradients(-1), gradients(1), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, {"bidirectional": True}])
@pytest.mark.parametrize(
    ("time", "batch", "features", "hidden"), [(131, 17, 67, 65), (3, 700, 65, 129), (40, 2, 9, 64)]
)
def test_16_bit_products_by_way_of_float32(
    time: int,
    batch: int,
    features: int,
    hidden: int,
    options: dict[str, Any],
    dtype: torch.dtype,
    plain_calls: Counter[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What a CPU does for which PyTorch has no GEMM in 16 bits: some products in several blocks, some too small."""
    if "avx2" in rnn_ext.build_info()["cpu_isas_runnable"]:
        monkeypatch.setenv("RNN_EXT_CPU_ISA", "avx2")
    monkeypatch.setattr(gemm, "has_gemm", lambda dtype: False)
    module = rnn_ext.RNN(features, hidden, **options).to(dtype)
    torch_module = rnn_ext.to_torch(copy.deepcopy(module))
    groups = len(module.all_weights)
    x = torch.randn(time, batch, features, dtype=dtype, requires_grad=True)
    hx = torch.randn(groups, batch, hidden, dtype=dtype, requires_grad=True)
    g, g_n = torch.randn(time, batch, groups * hidden, dtype=dtype), torch.randn(groups, batch, hidden, dtype=dtype)
    what = f"{(time, batch, features, hidden)} {options}"
    compare_with_pieces(module, torch_module, x, (hx, g, g_n), 1, plain_calls, what, (time * batch) ** 0.5)


@pytest.mark.parametrize("hidden", [7, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_strides(dtype: torch.dtype, hidden: int, plain_calls: Counter[str]) -> None:
    """Inputs, weights and gradients that are views of something else."""
    w_ih = torch.randn(4, hidden, dtype=dtype).t().requires_grad_()
    w_hh = (torch.randn(hidden, 2 * hidden, dtype=dtype) / hidden**0.5)[:, ::2].requires_grad_()
    b_ih, b_hh = torch.randn(hidden, 2, dtype=dtype).unbind(1)
    hx = torch.randn(1, hidden, 3, dtype=dtype).transpose(1, 2)
    g = torch.randn(3, 5, hidden, dtype=dtype).transpose(0, 1)
    wide = torch.randn(5, 6, 8, dtype=dtype)
    for x in (wide.permute(1, 0, 2)[:5, :3, :4], wide[:, ::2, ::2], wide[:, 1:4, 2:6], wide.flip(2)[:, :3, :4]):
        found = []
        for copied in (False, True):
            t = [a.detach().clone(memory_format=torch.contiguous_format) if copied else a for a in (w_ih, w_hh, b_ih)]
            w = [a.requires_grad_() for a in (*t[:2], t[2].detach())]
            inputs = [a.contiguous() if copied else a for a in (x, hx, g)]
            output, _ = rnn_ext.functional.rnn(inputs[0], [[*w, b_hh]], inputs[1])
            found.append([output, *torch.autograd.grad(output, w, inputs[2])])
        torch.testing.assert_close(*found)
    assert plain_calls["_plain_layer"] == plain_calls["_plain_layer_backward"] == 8


def test_only_what_is_needed(plain_calls: Counter[str]) -> None:
    module = rnn_ext.RNN(3, 5)
    x, hx = torch.randn(4, 2, 3, requires_grad=True), torch.randn(1, 2, 5, requires_grad=True)
    everything = [x, hx, *module.parameters()]
    expected = torch.autograd.grad(module(x, hx)[0].sum(), everything)
    for i, wanted in enumerate(everything):
        for t in everything:
            t.requires_grad_(t is wanted)
        module(x, hx)[0].sum().backward()
        assert torch.equal(wanted.grad, expected[i])
        assert all(t.grad is None for t in everything[i + 1 :])
    assert plain_calls["_plain_layer_backward"] == 1 + len(everything)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("time", [1, 4])
def test_gradients_of_gradients(time: int, bidirectional: bool, plain_calls: Counter[str]) -> None:
    """Of the pieces: also through the states that backward keeps, of which the output is a clone."""
    module = rnn_ext.RNN(3, 4, 2, bidirectional=bidirectional).double()
    x = torch.randn(time, 2, 3, dtype=torch.float64, requires_grad=True)
    hx = torch.randn(len(module.all_weights), 2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x, hx, *_: module(x, hx), (x, hx, *module.parameters()))
    assert plain_calls["_plain_layer"]


@pytest.mark.parametrize("shape", [(4, 0, 3), (4, 2, 0)])
def test_nothing_there(shape: tuple[int, int, int]) -> None:
    w = [torch.randn(5, shape[2]), torch.randn(5, 5), torch.randn(5), torch.randn(5)]
    x, hx = torch.randn(shape), torch.randn(1, shape[1], 5)
    found = []
    for watched in (False, True):
        leaves = [t.clone().requires_grad_() for t in (x, hx, *w)]
        with Watch() if watched else torch.enable_grad():
            output, h_n = rnn_ext.functional.rnn(leaves[0], [leaves[2:]], leaves[1])
            found.append([output, h_n, *torch.autograd.grad(output.sum() + h_n.sum(), leaves)])
    torch.testing.assert_close(*found)


def test_sums_of_many_rows_are_as_good_as_torchs() -> None:
    for rows, columns in ((0, 3), (1, 1), (31, 5), (97, 64), (2**15, 1), (2**12, 9)):
        m = torch.rand(rows, columns)
        exact = m.double().sum(0)
        ours, theirs = (s.double() for s in (torch.ops.rnn_ext.sum_of_rows(m), m.sum(0)))
        bound = 2 * (theirs - exact).abs().max() + 1e-6 * exact.abs().max()
        assert (ours - exact).abs().max() <= bound


GOOD = [torch.zeros(4, 2, 3), None, torch.zeros(5, 3), torch.zeros(5, 5), torch.zeros(5), torch.zeros(5)]


@pytest.mark.parametrize(
    ("index", "bad", "sentence"),
    [
        (0, torch.zeros(4, 3), "x must have 3 dimensions, got 2"),
        (0, torch.zeros(4, 2, 3).double(), "all of the tensors must be on the CPU and of w_hh's dtype"),
        (1, torch.zeros(1, 3, 5), r"h0 must have shape \(1, 2, 5\), got \(1, 3, 5\)"),
        (2, torch.zeros(5, 4), r"w_ih must have shape \(5, 3\), got \(5, 4\)"),
        (3, torch.zeros(5, 4), r"w must have shape \(G\*H, H\) with 1 groups .* got \(5, 4\)"),
        (4, torch.zeros(6), r"b_ih must have shape \(5\), got \(6\)"),
        (5, torch.zeros(6), r"b_hh must have shape \(5\), got \(6\)"),
        (5, None, "b_ih and b_hh must both be given, or neither"),
    ],
)
def test_bad_arguments(index: int, bad: Tensor | None, sentence: str) -> None:
    args = [*GOOD[:index], bad, *GOOD[index + 1 :]]
    with pytest.raises(RuntimeError, match=sentence):
        torch.ops.rnn_ext.plain_layer(*args, *(None,) * 4, False, False)


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="only MKL can be told for one call")
@pytest.mark.parametrize(("steps", "hidden"), [(100, 64), (20, 128)])
def test_small_products_have_one_thread(steps: int, hidden: int) -> None:
    """A step of training whose kernels and products are too small for a second thread starts none."""
    code = """
import os, sys, torch, rnn_ext
torch.set_num_threads(2)
steps, hidden = map(int, sys.argv[1:])
rnn, x = rnn_ext.RNN(hidden, hidden), torch.zeros(steps, 1, hidden, requires_grad=True)
before, told = len(os.listdir("/proc/self/task")), torch.__config__.parallel_info()
output, _ = rnn(x)
output.backward(torch.ones_like(output))
assert torch.__config__.parallel_info() == told
print(len(os.listdir("/proc/self/task")) - before)
"""
    command = [sys.executable, "-c", code, str(steps), str(hidden)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "0"
