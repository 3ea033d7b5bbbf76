"""The primitives against the plain-PyTorch reference in float64, on every instruction set of this machine."""

from __future__ import annotations

import threading

import pytest
import torch
from helpers import assert_as_accurate
from hypothesis import given
from hypothesis import strategies as st
from problems import Problem, make, problems

import rnn_ext
from rnn_ext import _C, ops, reference

ISAS = rnn_ext.build_info()["cpu_isas_runnable"]
LAYOUTS = ("dense", "lengths", "packed")


def check(problem: Problem, dtype: torch.dtype) -> None:
    same = problem.cast(dtype)
    for ours, theirs, exact, name in zip(
        same.run(ops), same.run(reference), same.cast(torch.float64).run(reference), ("states", "last"), strict=True
    ):
        assert_as_accurate(ours, theirs, exact, f"{name} of {problem}")


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values(isa: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RNN_EXT_CPU_ISA", isa)

    @given(problems())
    def run(problem: Problem) -> None:
        check(problem, dtype)

    run()


@pytest.mark.parametrize("stride", ["last dimension", "expanded", "batch first"])
def test_input_strides(stride: str) -> None:
    u = torch.randn(5, 4, 66)
    u = {"last dimension": u[..., ::2], "expanded": u[:1, :, :33].expand(5, 4, 33), "batch first": u.transpose(0, 1)}[
        stride
    ][..., :33]
    w = torch.randn(33, 33) / 6
    for weight in (w, w.t(), torch.randn(66, 66)[::2, ::2] / 6):
        problem = make(u.shape[0], u.shape[1], 33, (1,), "dense", seed_kind="state").with_args(u=u, w=weight)
        check(problem, torch.float32)


@pytest.mark.parametrize("direction", [(1,), (-1,), (1, -1)])
@pytest.mark.parametrize("linear", [False, True])
def test_padding_never_matters(direction: tuple[int, ...], linear: bool) -> None:
    problem = make(9, 7, 20, direction, "lengths", linear=linear, seed_kind="state").cast(torch.float32)
    ended = (torch.arange(9).unsqueeze(1) >= problem.args["lengths"]).unsqueeze(2)
    names = ("v", "factor") if linear else ("u",)
    poisoned = problem.with_args(**{n: problem.args[n].masked_fill(ended, torch.nan) for n in names})
    (clean, clean_last), (output, last) = problem.run(ops), poisoned.run(ops)
    assert torch.equal(clean, output)
    assert torch.equal(clean_last, last)
    assert not output.masked_select(ended.expand_as(output)).any()


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_nan_and_infinity_pass_through(nonlinearity: str) -> None:
    problem = make(4, 5, 19, (1,), "dense", nonlinearity=nonlinearity).cast(torch.float32)
    u = problem.args["u"].clone()
    u[0, 0, 0], u[0, 1, 1], u[0, 2, 2], u[0, 3, 3] = torch.nan, torch.inf, -torch.inf, -0.0
    problem = problem.with_args(u=u)
    for ours, theirs in zip(problem.run(ops), problem.run(reference), strict=True):
        torch.testing.assert_close(ours, theirs, equal_nan=True)


# What the planner splits: rows, columns, groups.
SPLIT = (
    (200, 32, 256, (1,), "rows"),
    (200, 31, 129, (1,), "rows"),
    (100, 1, 1024, (1,), "columns"),
    (100, 3, 700, (1,), "columns"),
    (200, 1, 256, (1, -1), "rows"),
)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SPLIT, ids=str)
def test_bits_do_not_depend_on_threads(shape: tuple[int, int, int, tuple[int, ...], str], layout: str) -> None:
    time, batch, hidden, direction, kind = shape
    plan = _C.cpu_plan(time, batch, len(direction), hidden, 4, 2)
    assert plan["row_workers" if kind == "rows" else "column_workers"] == 2, "the shape no longer shows this split"
    for linear in (False, True):
        problem = make(time, batch, hidden, direction, layout, linear=linear, seed_kind="state").cast(torch.float32)
        results = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(problem.run(ops))
        for one, two in zip(*results, strict=True):
            assert torch.equal(one, two)


@given(st.sampled_from([1, 2, 4, 6, 7, 13, 40]), st.sampled_from([16, 20, 64, 65, 130]), st.integers(0, 100))
def test_bits_do_not_depend_on_the_batch(batch: int, hidden: int, seed: int) -> None:
    problem = make(6, batch, hidden, (1,), "dense", seed_kind="state", random_seed=seed).cast(torch.float32)
    whole, _ = problem.run(ops)
    for row in (0, batch - 1):
        alone = problem.with_args(
            u=problem.args["u"][:, row : row + 1], h0=problem.args["h0"][:, row : row + 1].contiguous()
        )
        assert torch.equal(alone.run(ops)[0], whole[:, row : row + 1])


@given(st.sampled_from([1, 5, 20]), st.sampled_from([16, 33, 64, 200]), st.integers(1, 7))
def test_streaming_gives_the_same_bits(batch: int, hidden: int, chunk: int) -> None:
    problem = make(15, batch, hidden, (1,), "dense", seed_kind="state").cast(torch.float32)
    whole, last = problem.run(ops)
    state, parts = problem.args["h0"], []
    for u in problem.args["u"].split(chunk):
        part, state = problem.with_args(u=u, h0=state).run(ops)
        parts.append(part)
    assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(state, last)


def test_concurrent_calls_from_python_threads() -> None:
    torch.set_num_threads(2)
    shapes = [(100, 16, 128, (1,)), (50, 1, 1024, (1,)), (80, 5, 65, (1, -1))]
    tasks = [make(*s, "dense", random_seed=i).cast(torch.float32) for i in range(4) for s in shapes]
    expected = [p.run(ops)[0] for p in tasks]
    wrong: list[str] = []

    def work(offset: int) -> None:
        for i in range(len(tasks)):
            k = (i + offset) % len(tasks)
            if not torch.equal(tasks[k].run(ops)[0], expected[k]):
                wrong.append(str(tasks[k]))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_many_small_calls_keep_memory_and_time() -> None:
    # An aligned allocation a call once made the heap grow by 16 KiB each time.
    problem = make(1, 1, 64, (1,), "dense").cast(torch.float32)

    def resident_pages() -> int:
        with open("/proc/self/statm") as f:
            return int(f.read().split()[1])

    keep = []
    with torch.inference_mode():
        for i in range(12000):
            if i == 2000:
                before = resident_pages()
            # Results that live on between calls are what fragments a heap.
            keep.append(problem.run(ops)[0])
            del keep[:-50]
    assert (resident_pages() - before) * 4096 < 10000 * 1024
