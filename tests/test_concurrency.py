"""Calls beside calls: inside another parallel region, from Python threads that change the number of PyTorch's, without
the GIL. Every result has the bits of one thread's."""

from __future__ import annotations

import ctypes
import threading
import time
from pathlib import Path

import pytest
import torch
from problems import Problem, make

from rnn_ext import ops

# By rows without a barrier, by columns of W with one a step, and groups; on 2 threads all are split.
SHAPES = ((100, 16, 128, (1,)), (50, 1, 1024, (1,)), (80, 5, 65, (1, -1)))


def tasks() -> list[Problem]:
    return [make(*shape, "dense", linear=linear).cast(torch.float32) for shape in SHAPES for linear in (False, True)]


def on_one_thread(problems: list[Problem]) -> list[tuple[torch.Tensor, ...]]:
    torch.set_num_threads(1)
    return [p.run(ops) for p in problems]


def same(ours: tuple[torch.Tensor, ...], expected: tuple[torch.Tensor, ...]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))


def test_inside_a_parallel_region() -> None:
    """Where PyTorch's own threads make the calls, and a nested region has fewer threads than were planned for."""
    problems = tasks()
    expected = on_one_thread(problems)
    torch.set_num_threads(2)
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
    both = threading.Barrier(2, timeout=30)
    found: dict[int, list[tuple[torch.Tensor, ...]]] = {}

    @ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p)
    def body(begin: int, end: int, _: int) -> None:
        both.wait()  # so that two threads really are at it
        for i in range(begin, end):
            found[i] = [p.run(ops) for p in problems]

    run = library.torch_parallel_for
    run.argtypes = [ctypes.c_int64] * 3 + [type(body), ctypes.c_void_p]
    assert run(0, 2, 1, body, None) == 0
    assert sorted(found) == [0, 1]
    for results in found.values():
        for problem, one, other in zip(problems, results, expected, strict=True):
            assert same(one, other), str(problem)


def test_threads_that_change_the_number_of_threads() -> None:
    problems = tasks()
    expected = on_one_thread(problems)
    right: list[bool] = []

    def work(offset: int) -> None:
        for i in range(3 * len(problems)):
            torch.set_num_threads((i + offset) % 3 + 1)
            k = (i + offset) % len(problems)
            right.append(same(problems[k].run(ops), expected[k]))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert right == [True] * (9 * len(problems))


@pytest.mark.parametrize("linear", [False, True])
def test_python_goes_on_meanwhile(linear: bool) -> None:
    """A call releases the GIL: another thread wakes many times before it is over, not just once or twice."""
    problem = make(4000, 32, 256, (1,), "dense", linear=linear).cast(torch.float32)
    torch.set_num_threads(1)
    begun, over = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        problem.run(ops)
        over.set()

    thread = threading.Thread(target=work)
    thread.start()
    begun.wait()
    wakes = 0
    while not over.is_set():
        time.sleep(1e-3)
        wakes += 1
    thread.join()
    assert wakes > 5
