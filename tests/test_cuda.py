"""The CUDA kernels as ops: on a GPU, or on the emulator that stands in for one (`make test-cuda-emulated`)."""

from __future__ import annotations

import pytest
import torch
from helpers import assert_as_accurate, tf32
from hypothesis import given, settings
from problems import Problem, problems
from torch import Tensor, nn

import rnn_ext
from rnn_ext import ops, reference

EMULATED = rnn_ext.build_info()["cuda"] == "emulated"
DEVICE = torch.device("cpu" if EMULATED else "cuda")

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(
        not EMULATED and not (torch.cuda.is_available() and rnn_ext.build_info()["cuda"]),
        reason="needs a GPU, and rnn_ext built with CUDA kernels; or their emulator: make test-cuda-emulated",
    ),
]


def on_device(problem: Problem) -> Problem:
    """Its tensors on the device, but batch_sizes and lengths, which stay on the CPU."""
    moved = {
        name: value.to(DEVICE)
        for name, value in problem.args.items()
        if isinstance(value, torch.Tensor) and name not in ("batch_sizes", "lengths")
    }
    return problem.with_args(**moved)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@settings(max_examples=15 if EMULATED else 200)
@given(problem=problems(max_hidden=300, max_time=6, max_batch=9))
def test_values(dtype: torch.dtype, problem: Problem) -> None:
    problem = problem.cast(dtype)
    exact = problem.cast(torch.float64).run(reference)
    got = on_device(problem).run(ops)
    for ours, theirs, truth, name in zip(got, problem.run(reference), exact, ("states", "last"), strict=True):
        assert_as_accurate(ours.cpu(), theirs, truth, f"{name} of {problem}")


@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_module_trains_as_on_the_cpu(bidirectional: bool) -> None:
    torch.manual_seed(0)
    module = rnn_ext.RNN(5, 20, 2, bidirectional=bidirectional)
    oracle = nn.RNN(5, 20, 2, bidirectional=bidirectional).double()
    oracle.load_state_dict(module.state_dict())
    module = module.to(DEVICE)
    x = torch.randn(6, 3, 5)
    packed = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([3, 6, 1]), enforce_sorted=False)
    for given_input in (x, packed):
        _, h_n = module(given_input.to(DEVICE))
        wide = given_input.double() if isinstance(given_input, torch.Tensor) else given_input.to(torch.float64)
        _, expected_h_n = oracle(wide)
        assert h_n.device.type == DEVICE.type
        torch.testing.assert_close(h_n.cpu(), expected_h_n.float())
        h_n.pow(2).sum().backward()
        expected_h_n.pow(2).sum().backward()
        for (name, ours), theirs in zip(module.named_parameters(), oracle.parameters(), strict=True):
            assert ours.grad is not None and theirs.grad is not None
            torch.testing.assert_close(ours.grad.cpu(), theirs.grad.float(), msg=lambda m, name=name: f"{name}: {m}")


def test_gradgradcheck() -> None:
    u, w = (torch.randn(*s, dtype=torch.float64, device=DEVICE, requires_grad=True) for s in ((3, 2, 4), (4, 4)))
    assert torch.autograd.gradgradcheck(lambda u, w: ops.recurrence(u, None, w)[0], (u, w))


def rounded(x: Tensor) -> Tensor:
    """The nearest of TF32's numbers, ties away from zero, in float64."""
    return ((x.float().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32).double()


# So many rows that tensor cores gain on every device: what multiply-adds make of them takes two turns or more.
ROWS, HIDDEN = 1024, 128


def test_tf32_is_pytorchs_to_allow() -> None:
    g = torch.Generator().manual_seed(0)
    u = torch.randn(2, ROWS, HIDDEN, generator=g)
    w = torch.randn(HIDDEN, HIDDEN, generator=g) / HIDDEN**0.5
    h = u.new_zeros(ROWS, HIDDEN).double()
    expected = torch.stack([h := torch.tanh(x.double() + rounded(h) @ rounded(w).T) for x in u])

    def run() -> Tensor:
        return ops.recurrence(u.to(DEVICE), None, w.to(DEVICE))[0].cpu()

    exact = run()
    with tf32():
        got = run()
    assert torch.equal(run(), exact)
    # Two rounded factors in each of H products are off by much more than float32's sums, which here have T = 2 steps to
    # add up and now and then tip a state to the next of TF32's numbers: one of H, by 2^-10, times |w| < 1.
    assert (exact - expected).abs().max() > 1e-4
    assert (got - expected).abs().max() < 2**-10


def test_tf32_is_asked_for_when_a_call_runs() -> None:
    u = torch.randn(2, ROWS, HIDDEN, device=DEVICE, requires_grad=True)
    w = torch.randn(HIDDEN, HIDDEN, device=DEVICE) / HIDDEN**0.5

    @torch.compile(backend="aot_eager", fullgraph=True)
    def compiled(u: Tensor) -> Tensor:
        return ops.recurrence(u, None, w)[0].sin()

    for function in (compiled, lambda u: ops.recurrence(u, None, w)[0].sin()):
        h = function(u)
        (exact,) = torch.autograd.grad(h.sum(), u, retain_graph=True)
        with tf32():
            (gradient,) = torch.autograd.grad(h.sum(), u)
            assert 1e-5 < (gradient - exact).abs().max() < 0.1
            assert 1e-5 < (function(u) - h).abs().max() < 0.1
        assert torch.equal(function(u), h)


@pytest.mark.skipif(EMULATED, reason="needs a GPU: the emulator has no streams and no graphs")
def test_streams_and_graphs() -> None:
    u, w = torch.randn(20, 4, 64, device=DEVICE), torch.randn(64, 64, device=DEVICE) / 8
    expected = ops.recurrence(u, None, w)[0]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        h, _ = ops.recurrence(u, None, w)
    stream.synchronize()
    assert torch.equal(h, expected)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        h, _ = ops.recurrence(u, None, w)
    u.neg_()
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(h, ops.recurrence(u, None, w)[0])
