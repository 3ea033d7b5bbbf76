"""The primitives against the plain-PyTorch reference in float64, on every instruction set of this machine."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from helpers import assert_as_accurate
from hypothesis import given
from hypothesis import strategies as st
from problems import Problem, make, problems
from torch.utils.data import DataLoader, Dataset

import rnn_ext
from rnn_ext import _C, ops, reference

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
ISAS = rnn_ext.build_info()["cpu_isas_runnable"]
LAYOUTS = ("dense", "lengths", "packed")


def check(problem: Problem, dtype: torch.dtype) -> None:
    same = problem.cast(dtype)
    for ours, theirs, exact, name in zip(
        same.run(ops), same.run(reference), same.cast(torch.float64).run(reference), ("states", "last"), strict=True
    ):
        assert_as_accurate(ours, theirs, exact, f"{name} of {problem}")


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_values(isa: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RNN_EXT_CPU_ISA", isa)

    @given(problems())
    def run(problem: Problem) -> None:
        check(problem, dtype)

    run()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("seed_kind", [None, "state", "product"])
def test_nothing_to_compute(layout: str, linear: bool, seed_kind: str | None) -> None:
    # Without a row, a result is empty and has its shape.
    if seed_kind == "product" and not linear:
        seed_kind = None
    shapes = {"dense": [(4, 0), (1, 1)], "lengths": [(4, 0), (1, 1)], "packed": [(1, 1)]}[layout]
    for time, batch in shapes:
        problem = make(time, batch, 17, (1, -1), layout, linear=linear, seed_kind=seed_kind)
        check(problem, torch.float32)


STRIDES = {
    "last dimension": lambda x: torch.stack([x, -x], -1).flatten(-2)[..., ::2],
    "batch first": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "expanded over time": lambda x: x[:1].expand_as(x),
    "expanded over rows": lambda x: x[:, :1].expand_as(x),
    "expanded over columns": lambda x: x[..., :1].expand_as(x),
    "sliced": lambda x: torch.nn.functional.pad(x, (1, 2))[..., 1:-2],
}
WEIGHTS = {
    "transposed": lambda w: w.t().contiguous().t(),
    "sliced": lambda w: torch.nn.functional.pad(w, (1, 2))[:, 1:-2],
    "every other": lambda w: torch.stack([w, -w], -1).flatten(-2)[:, ::2],
    "expanded": lambda w: w[:, :1].expand_as(w),
}


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("stride", STRIDES)
def test_sequence_and_state_strides(stride: str, linear: bool) -> None:
    problem = make(5, 4, 33, (1, -1), "dense", linear=linear, seed_kind="state")
    view = STRIDES[stride]
    changes = {n: view(problem.args[n]) for n in problem.tensors if n != "w"}
    assert any(not v.is_contiguous() for v in changes.values())
    check(problem.with_args(**changes), torch.float32)


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("stride", WEIGHTS)
def test_weight_strides(stride: str, transpose: bool) -> None:
    for hidden in (1, 16, 33):
        problem = make(5, 4, hidden, (1, -1), "dense", linear=True, seed_kind="state", transpose=transpose)
        check(problem.with_args(w=WEIGHTS[stride](problem.args["w"])), torch.float32)
    # Each group's own W transposed, as autograd of a tied weight may pass it.
    problem = make(5, 4, 33, (1,), "dense", seed_kind="state")
    check(problem.with_args(w=problem.args["w"].t()), torch.float32)


@pytest.mark.parametrize("direction", [(1,), (-1,), (1, -1)])
@pytest.mark.parametrize(
    ("linear", "leaks", "transpose"),
    [
        (False, None, False),
        (True, None, False),
        (False, "part", False),
        (True, "part", False),
        (True, "part", True),
    ],
)
def test_padding_never_matters(direction: tuple[int, ...], linear: bool, leaks: str | None, transpose: bool) -> None:
    options: dict[str, Any] = {"linear": linear, "leaks": leaks, "transpose": transpose, "seed_kind": "state"}
    problem = make(9, 7, 20, direction, "lengths", **options).cast(torch.float32)
    ended = (torch.arange(9).unsqueeze(1) >= problem.args["lengths"]).unsqueeze(2)
    names = (("v", "factor") if linear else ("u",)) + (("leak",) if leaks else ())
    poisoned = problem.with_args(**{n: problem.args[n].masked_fill(ended, torch.nan) for n in names})
    (clean, clean_last), (output, last) = problem.run(ops), poisoned.run(ops)
    assert torch.equal(clean, output)
    assert torch.equal(clean_last, last)
    assert not output.masked_select(ended.expand_as(output)).any()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", ["u", "h0", "w"])
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_nan_and_infinity_pass_through(nonlinearity: str, name: str, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RNN_EXT_CPU_ISA", isa)
    # One whole vector and a rest, so that both ways through the epilogue meet them.
    problem = make(4, 5, 19, (1, -1), "dense", nonlinearity=nonlinearity, seed_kind="state").cast(torch.float32)
    for special in (torch.nan, torch.inf, -torch.inf, -0.0):
        for column in (0, 18):
            value = problem.args[name].clone()
            value[(0, column) if name == "w" else (0, 1, column)] = special
            poisoned = problem.with_args(**{name: value})
            for ours, theirs in zip(poisoned.run(ops), poisoned.run(reference), strict=True):
                torch.testing.assert_close(ours, theirs, equal_nan=True)


# Enough work for two threads: rows are split, or whole groups, or, where there are too few rows, the columns of W.
SPLIT = (
    (200, 32, 256, (1,)),
    (200, 31, 129, (1,)),
    (200, 1, 256, (1, -1)),
    (100, 1, 1024, (1,)),
    (100, 3, 700, (1,)),
)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_bits_do_not_depend_on_threads(layout: str, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RNN_EXT_CPU_ISA", isa)
    seen = set()
    for time, batch, hidden, direction in SPLIT:
        plan = _C.cpu_plan(time, batch, len(direction), hidden, "float32", 2)
        seen |= {kind for kind in ("row_workers", "column_workers") if plan[kind] == 2}
        for linear in (False, True):
            problem = make(time, batch, hidden, direction, layout, linear=linear, seed_kind="state")
            results = []
            # The last ones: threads change between calls, to more than this machine may have and back.
            for threads in (1, 2, 3, 1):
                torch.set_num_threads(threads)
                results.append(problem.cast(torch.float32).run(ops))
            for later in results[1:]:
                for one, other in zip(results[0], later, strict=True):
                    assert torch.equal(one, other), f"{problem} depends on the number of threads"
    assert seen == {"row_workers", "column_workers"}, "the shapes no longer show both splits"


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("linear", [False, True])
def test_bits_do_not_depend_on_the_batch(linear: bool, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sequence of one group has the same bits alone, in any batch, beside other groups, ragged and packed."""
    monkeypatch.setenv("RNN_EXT_CPU_ISA", isa)
    sequences, seed = (("v", "factor"), "seed") if linear else (("u",), "h0")

    @given(
        st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16]),
        st.sampled_from([1, 2, 4, 6, 7, 13, 40]),
        st.sampled_from([16, 20, 64, 65, 130]),
        st.sampled_from([(1,), (-1,), (1, -1, 1)]),
        st.integers(0, 100),
    )
    def run(dtype: torch.dtype, batch: int, hidden: int, direction: tuple[int, ...], random_seed: int) -> None:
        dense = make(6, batch, hidden, direction, "dense", linear=linear, seed_kind="state", random_seed=random_seed)
        dense = dense.cast(dtype)
        whole, _ = dense.run(ops)
        flat = {n: dense.args[n].reshape(6 * batch, -1) for n in sequences}
        packed = dense.with_args(batch_sizes=torch.full((6,), batch), **flat)
        assert torch.equal(packed.run(ops)[0].view_as(whole), whole)
        lengths = torch.arange(batch) % 6 + 1
        ragged, ragged_last = dense.with_args(lengths=lengths).run(ops)
        for row in {0, batch // 2, batch - 1}:
            end = int(lengths[row])
            for g, d in enumerate(direction):
                columns = slice(g * hidden, (g + 1) * hidden)
                alone = {n: dense.args[n][:end, row : row + 1, columns] for n in sequences}
                state = dense.args[seed][g : g + 1, row : row + 1]
                group = dense.with_args(direction=(d,), w=dense.args["w"][columns], **alone, **{seed: state})
                output, last = group.run(ops)
                assert torch.equal(output[:, 0], ragged[:end, row, columns])
                assert torch.equal(last[0, 0], ragged_last[g, row])

    run()


@given(
    st.booleans(),
    st.sampled_from([1, -1]),
    st.sampled_from([1, 5, 20]),
    st.sampled_from([16, 33, 64]),
    st.integers(1, 7),
)
def test_streaming_gives_the_same_bits(linear: bool, direction: int, batch: int, hidden: int, chunk: int) -> None:
    problem = make(15, batch, hidden, (direction,), "dense", linear=linear, seed_kind="state").cast(torch.float32)
    sequences, seed = (("v", "factor"), "seed") if linear else (("u",), "h0")
    whole, last = problem.run(ops)
    state, outputs = problem.args[seed], []
    chunks = list(zip(*(problem.args[n].split(chunk) for n in sequences), strict=True))
    for parts in chunks[::direction]:
        values = dict(zip(sequences, parts, strict=True))
        output, state = problem.with_args(**values, **{seed: state}).run(ops)
        outputs.append(output)
    assert torch.equal(torch.cat(outputs[::direction]), whole)
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


def gradients_of(problem: Problem) -> tuple[torch.Tensor, ...]:
    values = {n: problem.args[n].clone().requires_grad_() for n in problem.tensors}
    return torch.autograd.grad(problem.with_args(**values).run(ops)[0].sum(), list(values.values()))


def test_concurrent_backward_from_python_threads() -> None:
    torch.set_num_threads(2)
    tasks = [make(*s, "dense").cast(torch.float32) for s in ((100, 16, 128, (1,)), (50, 1, 1024, (1,)))]
    expected = [gradients_of(p) for p in tasks]
    found: list[tuple[int, tuple[torch.Tensor, ...]]] = []

    def work() -> None:
        found.extend((k, gradients_of(p)) for k, p in enumerate(tasks))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 * len(tasks)
    for k, gradients in found:
        assert all(torch.equal(a, b) for a, b in zip(gradients, expected[k], strict=True)), str(tasks[k])


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_calls_from_the_inter_op_pool() -> None:
    """TorchScript's fork runs a call on a thread of PyTorch's other pool, beside calls like it."""

    def one(u: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return torch.ops.rnn_ext.recurrence(u, None, w, None, None, None, None, None, "tanh", [1])[0]

    def eight(u: torch.Tensor, w: torch.Tensor) -> list[torch.Tensor]:
        forked = [torch.jit.fork(one, u, w) for _ in range(8)]
        return [torch.jit.wait(f) for f in forked]

    torch.set_num_threads(2)
    for shape in ((200, 32, 256, (1,)), (100, 1, 1024, (1,))):
        problem = make(*shape, "dense").cast(torch.float32)
        expected, _ = problem.run(ops)
        for output in torch.jit.script(eight)(problem.args["u"], problem.args["w"]):
            assert torch.equal(output, expected)


class Outputs(Dataset):
    """Runs a problem where the items are made: in a worker process of a DataLoader."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Any:
        return self.problem.run(ops)[0]


def test_calls_in_a_forked_worker() -> None:
    # The parent has its threads by then, and the child has none of them.
    torch.set_num_threads(2)
    problem = make(100, 1, 1024, (1,), "dense").cast(torch.float32)
    expected, _ = problem.run(ops)
    loader = DataLoader(Outputs(problem), batch_size=None, num_workers=1, multiprocessing_context="fork", timeout=60)
    assert all(torch.equal(output, expected) for output in loader)


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


def test_an_output_of_more_than_32_mib() -> None:
    # For which other pages are asked for than for those of its parts.
    u, w = torch.randn(17, 2000, 257), torch.randn(257, 257) / 16
    h, last = ops.recurrence(u, None, w)
    assert h.numel() * h.element_size() > 2**25
    parts = [ops.recurrence(part, None, w) for part in u.split(500, dim=1)]
    assert torch.equal(h, torch.cat([states for states, _ in parts], 1))
    assert torch.equal(last, torch.cat([states for _, states in parts], 1))
