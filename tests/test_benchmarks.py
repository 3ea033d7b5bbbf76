"""The benchmarks' own arithmetic, and a tiny run from the command line to the pictures. No test here judges a time."""

from __future__ import annotations

import copy
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import busy, compare, cores, cuda_code, cuda_cost, kernels, odd, ragged, report, worker
from benchmarks import peers as peers_package
from benchmarks.calls import calls as fixed_costs
from benchmarks.grid import BATCH_SWEEP, FORWARD, FULL, HIDDEN_SWEEP, MODES, QUICK, TRAINING, Shape
from benchmarks.limits import Level, Limits
from benchmarks.peers import OURS, TORCH, Contestant, Disagrees, contestants, load, make_problem
from benchmarks.timing import Sample, take_turns
from rnn_ext import reference


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """Peers set the number of threads for the whole process."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


# ---------------------------------------------------------------------------------------------------- timing


def test_turns_are_shuffled_each_round() -> None:
    log: list[str] = []
    rounds = 8

    def settle() -> None:
        log.append("|")

    calls = {name: (lambda name=name: log.append(name)) for name in "abcd"}
    samples = take_turns(calls, rounds=rounds, seconds=1e-3, settle=settle)

    assert {name: len(sample.times) for name, sample in samples.items()} == dict.fromkeys("abcd", rounds)
    # What was called between two settlings is one turn; before the first, everybody is tried.
    turns = "".join(log).split("|")[1:]
    assert all(len(set(turn)) == 1 for turn in turns)
    orders = ["".join(turn[0] for turn in turns[i : i + 4]) for i in range(0, len(turns), 4)]
    assert len(orders) == rounds
    assert all(sorted(order) == list("abcd") for order in orders)
    assert len(set(orders)) > 1


def test_turns_are_the_same_for_a_seed() -> None:
    def order(seed: int) -> list[str]:
        log: list[str] = []
        calls = {name: (lambda name=name: (log.append(name), time.sleep(0.11))) for name in "abc"}
        take_turns(calls, fewest=2, rounds=2, seconds=0.0, seed=seed, settle=lambda: None)
        return log

    assert order(3) == order(3)


def test_long_calls_get_fewer_rounds() -> None:
    samples = take_turns({"long": lambda: time.sleep(0.02)}, rounds=9, fewest=3, seconds=0.01, settle=lambda: None)
    assert len(samples["long"].times) == 3
    assert samples["long"].median >= 0.02
    assert samples["long"].cores < 0.5, "sleeping keeps no core busy"


def test_sample() -> None:
    sample = Sample((1.0, 2.0, 3.0, 4.0, 10.0))
    assert sample.median == 3.0
    assert sample.quartiles == (2.0, 4.0)
    assert sample.spread == pytest.approx(1 / 3)
    assert Sample((2.0,)).spread == 0.0


def test_ratio_cancels_what_slows_a_whole_round() -> None:
    ours, theirs = Sample((1.0, 5.0, 1.0)), Sample((2.0, 10.0, 2.0))
    assert theirs.over(ours).times == (2.0, 2.0, 2.0)
    assert theirs.over(ours).spread == 0.0


# ------------------------------------------------------------------------------------------------------ grid


def test_grid_covers_what_it_promises() -> None:
    assert len({str(shape) for shape in FULL}) == len(FULL)
    assert set(HIDDEN_SWEEP) | set(BATCH_SWEEP) <= set(FULL)
    assert min(s.time for s in FULL if s.time > 1) == 10
    assert max(s.time for s in FULL) == 100_000
    assert any(s.hidden_size % 8 for s in FULL)
    assert any(s.bidirectional for s in FULL)
    assert any(s.num_layers == 2 for s in FULL)
    assert any(s.packed and s.bidirectional for s in FULL)
    assert len(QUICK) < 6
    assert {s.dtype for s in FULL} == {"float32", "bfloat16", "float16"}
    assert str(Shape(4, 3, 5, 7, dtype="bfloat16")) == "4x3x5x7 bfloat16"


def test_shape_arithmetic() -> None:
    shape = Shape(4, 3, 5, 7, num_layers=2, bidirectional=True)
    assert str(shape) == "4x3x5x7 2 layers bidir"
    assert shape.layer_inputs == [5, 14]
    assert shape.flops == 2 * 4 * 3 * 2 * 7 * (5 + 7) + 2 * 4 * 3 * 2 * 7 * (14 + 7)
    assert shape.batch_sizes == [3, 3, 3, 3]

    packed = Shape(5, 3, 2, 2, packed=True)
    assert packed.lengths == [5, 3, 1]
    assert packed.batch_sizes == [3, 2, 2, 1, 1]
    assert packed.flops == 2 * 9 * 2 * 4


# ----------------------------------------------------------------------------------------------------- cores


def test_cores() -> None:
    with pytest.raises(ValueError, match="3 threads asked for, but this process may use 2 CPUs"):
        cores.pick(3, [0, 1])
    # CPU numbers that no machine has are physical cores of their own.
    assert cores.pick(2, [100_000, 100_001, 100_002]) == {100_000, 100_001}
    before = cores.allowed()
    with cores.restricted(1):
        assert len(cores.allowed()) == min(1, len(before))
    assert cores.allowed() == before
    assert cores.Others().cores() >= 0.0


# ---------------------------------------------------------------------------------------------------- limits

MACHINE = Limits(1, 100.0, (Level("L1", 100.0, 50.0), Level("L2", 1000.0, 10.0), Level("memory", np.inf, 1.0)))


def test_reading_takes_what_each_level_holds() -> None:
    assert MACHINE.read_seconds(50.0) == 1.0
    assert MACHINE.read_seconds(100.0) == 2.0
    assert MACHINE.read_seconds(1000.0) == pytest.approx(2 + 90)
    assert MACHINE.read_seconds(1010.0) == pytest.approx(2 + 90 + 10)


def test_limit_of_a_recurrence_is_arithmetic_or_reading() -> None:
    # H = 4: 32 flops a row, 64 bytes of W; 1.28 s to read.
    assert MACHINE.recurrence_seconds([1], 1, 4) == pytest.approx(1.28)
    assert MACHINE.recurrence_seconds([8, 8], 1, 4) == pytest.approx(2 * 2.56)
    both = Limits(2, 200.0, MACHINE.levels)
    assert both.recurrence_seconds([1], 1, 4) == pytest.approx(0.64)


def test_limits_of_rows() -> None:
    for shape in (
        Shape(7, 3, 5, 4),
        Shape(7, 3, 5, 4, num_layers=2, bidirectional=True),
        Shape(7, 3, 5, 4, packed=True),
    ):
        forward, training = (MACHINE.seconds(shape, mode) for mode in MODES)
        assert shape.flops / MACHINE.flops <= forward < training
    assert Limits.from_json(json.loads(json.dumps(MACHINE.to_json()))) == MACHINE


# ----------------------------------------------------------------------------------------------------- peers


class Fake:
    """Returns what torch.nn.RNN returns, times a factor."""

    def __init__(self, name: str, factor: float) -> None:
        self.name, self._factor = name, factor

    def version(self) -> str:
        return "0"

    def supports(self, shape: Shape, mode: str) -> bool:
        return mode == FORWARD

    def prepare(self, problem: Any) -> Contestant:
        run, read, _ = load([TORCH])[0][0].prepare(problem)
        return Contestant(run, lambda result: [self._factor * array for array in read(result)])


SHAPES = [
    Shape(4, 3, 5, 7),
    Shape(4, 3, 5, 7, num_layers=2, bidirectional=True),
    Shape(4, 3, 5, 7, packed=True),
    Shape(4, 3, 5, 7, dtype="bfloat16"),
    Shape(4, 3, 5, 7, packed=True, dtype="float16"),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_every_installed_peer_agrees(shape: Shape, mode: str) -> None:
    able, missing = load(list(peers_package.MODULES))
    found, failed = contestants(make_problem(shape, mode, 1), able)
    assert not failed
    assert {OURS, TORCH} <= set(found)
    if shape.dtype != "float32":
        assert set(found) == {OURS, "rnn_ext float32", TORCH}
    assert len(able) + len(missing) == len(peers_package.MODULES)
    assert all("pip install" in line or "compiler" in line for line in missing)


def test_problems_are_the_same_every_time() -> None:
    first, second = (make_problem(SHAPES[2], TRAINING, 1) for _ in range(2))
    np.testing.assert_array_equal(first.x, second.x)
    assert first.lengths is not None
    assert not first.x[first.lengths[-1] :, -1].any(), "zeros after the end"


def test_a_wrong_peer_is_left_out_and_named() -> None:
    torch_peer = load([TORCH])[0][0]
    problem = make_problem(SHAPES[0], FORWARD, 1)
    found, failed = contestants(problem, [Fake("JAX", 1.0), Fake("oneDNN", 1.01), torch_peer])
    assert list(found) == [TORCH, "JAX"]
    assert "oneDNN, 4x3x5x7 forward: Disagrees: output differs by" in failed["oneDNN"]
    with pytest.raises(Disagrees):
        contestants(problem, [Fake(OURS, float("nan")), torch_peer])


def test_a_peer_that_cannot_is_not_asked() -> None:
    found, failed = contestants(make_problem(SHAPES[0], TRAINING, 1), [Fake("JAX", 1.0), load([TORCH])[0][0]])
    assert list(found) == [TORCH]
    assert not failed


# --------------------------------------------------------------------------------------------------- compare


def row(label: str, ours: float, theirs: float, spread: float = 0.01) -> dict[str, Any]:
    peers = {OURS: ours, TORCH: theirs, "JAX": 2 * theirs}
    return {
        "shape": vars(Shape(10, 1, 4, 4)),
        "label": label,
        "mode": FORWARD,
        "threads": 1,
        "others": 0.0,
        "failed": [],
        "peers": {name: {"seconds": s, "spread": spread, "cores": 1.0} for name, s in peers.items()},
        "best_peer": TORCH,
        "ratio": theirs / ours,
        "ratio_spread": spread,
    }


def result(*rows: dict[str, Any]) -> dict[str, Any]:
    return {"rows": list(rows), "kernels": [], "limits": {}, "others": {}, "notes": [], "versions": {}, "machine": "m"}


OLD = result(row("a", 1.0, 2.0), row("b", 1.0, 2.0))


@pytest.mark.parametrize(
    ("new", "found"),
    [
        (row("a", 1.0, 2.0), False),
        (row("a", 1.05, 2.0), False),  # within the margin
        (row("a", 1.2, 2.0), True),
        (row("a", 1.2, 2.0, spread=0.3), False),  # as slow, but it was noisy
        (row("a", 2.0, 4.0), False),  # the whole machine is slower
        (row("a", 2.0, 2.0), True),
        (row("a", 0.5, 2.0), False),
        (row("c", 9.0, 2.0), False),  # not in the old one
    ],
)
def test_regressions(new: dict[str, Any], found: bool) -> None:
    assert [change.key[0] for change in compare.regressions(OLD, result(new))] == ([new["label"]] if found else [])


def test_disturbed_rows_are_not_judged() -> None:
    new = {**row("a", 3.0, 2.0), "others": 0.5}
    assert not compare.regressions(OLD, result(new))
    assert "1 rows not judged" in compare.verdict(OLD, result(new, row("b", 1.0, 2.0)))


def test_peers_that_disagree_about_the_machine_are_noise() -> None:
    new = row("a", 1.2, 2.0)
    new["peers"]["JAX"]["seconds"] *= 1.4
    assert not compare.regressions(OLD, result(new))


def test_compare_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, same, slower = (tmp_path / name for name in ("old.json", "same.json", "slower.json"))
    for path, data in ((old, OLD), (same, OLD), (slower, result(row("a", 1.5, 2.0), row("b", 1.0, 2.0)))):
        path.write_text(json.dumps(data))
    assert compare.main([str(old), str(same)]) == 0
    assert compare.main([str(old), str(slower)]) == 1
    assert "a forward, 1 thread(s): +50.0%" in capsys.readouterr().out


def test_a_suspect_is_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    label = str(QUICK[0])
    old = tmp_path / "old.json"
    old.write_text(json.dumps(result(row(label, 1.0, 2.0))))
    slow, fast = result(row(label, 1.5, 2.0)), result(row(label, 1.0, 2.0))
    requests: list[worker.Request] = []

    def run(second: dict[str, Any]) -> int:
        def start(request: worker.Request) -> dict[str, Any]:
            requests.append(request)
            return {**copy.deepcopy(second), "threads": 1, "limits": None, "others": 0.0}

        monkeypatch.setattr(command, "measure", lambda args: copy.deepcopy(slow))
        monkeypatch.setattr(worker, "start", start)
        return command.main(["--compare", str(old), "--out", str(tmp_path / "out")])

    assert run(slow) == 1
    assert run(fast) == 0
    assert [request.rows for request in requests] == [[(QUICK[0], FORWARD)]] * 2


# ----------------------------------------------------------------------------------------- report, everything


def test_report_names_where_a_peer_is_faster() -> None:
    text = report.text(result(row("a", 1.0, 2.0), row("b", 4.0, 2.0)))
    assert "a peer is faster in 1 of 2 rows" in text
    assert "b forward, 1 thread(s): torch.nn.RNN takes 0.50 of our time" in text


def test_kernel_calls_agree_with_the_reference() -> None:
    calls = kernels.calls(3, 8)
    torch.manual_seed(0)
    time_steps = kernels.steps(3, 8)
    u, g = torch.randn(time_steps, 3, 8), torch.randn(time_steps, 3, 8)
    w = torch.randn(8, 8) / 8**0.5
    h = reference.recurrence(u, None, w, *(None,) * 5, "tanh", (1,))[0]
    s = reference.linear_recurrence(g, None, w, h, None, None, None, None, "tanh", "product", True, (-1,))[0]
    for name, expected in ((kernels.RECURRENCE, h), (kernels.LINEAR, s)):
        torch.testing.assert_close(calls[name]()[0], expected, rtol=1e-4, atol=1e-4)  # type: ignore[index]


def test_from_the_command_line_to_the_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, figures = tmp_path / "out", tmp_path / "elsewhere" / "figures.json"
    arguments = "--quick --threads 1 --only 100x1x64x64 --seconds 0.02 --no-memory --peers rnn_ext torch.nn.RNN"
    assert command.main([*arguments.split(), "--out", str(out), "--json", str(figures)]) == 0

    shown = capsys.readouterr().out
    assert "100x1x64x64" in shown
    assert "of limit" in shown
    data = json.loads(figures.read_text())
    assert [(r["label"], r["mode"], r["threads"]) for r in data["rows"]] == [("100x1x64x64", m, 1) for m in MODES]
    for measured in data["rows"]:
        assert set(measured["peers"]) == {OURS, TORCH}
        assert measured["limit"] > 0
        assert measured["ratio"] > 0
    assert {r["primitive"] for r in data["kernels"]} == {kernels.RECURRENCE, kernels.LINEAR}
    assert data == json.loads((out / "result.json").read_text())
    assert (out / "report.md").read_text() == report.text(data)
    for name in ("time_per_step_1.png", "roofline_1.png", "ratios_1.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG"), name


def test_16_bits_run_in_16_bits() -> None:
    problem = make_problem(SHAPES[3], FORWARD, 1)
    outputs = {peer.name: peer.prepare(problem).run() for peer in load([OURS, "rnn_ext float32", TORCH])[0]}
    dtypes = {OURS: torch.bfloat16, "rnn_ext float32": torch.float32, TORCH: torch.bfloat16}
    assert {name: output.dtype for name, output in outputs.items()} == dtypes


def test_ragged_calls_agree() -> None:
    shape = Shape(6, 4, 5, 5, packed=True)
    ended = torch.arange(6).unsqueeze(1) >= torch.tensor(shape.lengths)
    for calls in (*ragged.primitives(shape).values(), *ragged.modules(shape).values()):
        results = {name: call() for name, call in calls.items()}
        assert set(results) == set(ragged.LAYOUTS)
    forward = ragged.modules(shape)[FORWARD]
    padded = forward[ragged.LENGTHS]()
    assert isinstance(padded, torch.Tensor)
    assert not padded[ended].any()
    torch.testing.assert_close(padded[~ended], forward[ragged.PACKED]())
    shuffled = forward[ragged.SHUFFLED]()
    assert isinstance(shuffled, torch.Tensor)
    assert sorted(shuffled.any(2).sum(0).tolist()) == sorted(shape.lengths)
    (row,) = [r for r in ragged.measure(shape, 0.01) if r.level == FORWARD]
    assert list(row.times) == list(ragged.LAYOUTS[1:])
    assert min(row.times.values()) > 0
    tokens = (6 * 4, 4 * 4, sum(shape.lengths))  # of a full batch, of a short one, of a ragged one
    each = (tokens[1], *tokens[2:] * 3, tokens[0])
    row = row._replace(times=dict(zip(row.times, (n / tokens[0] for n in each), strict=True)))
    assert row.of_short() == pytest.approx([1, 1, 1])  # where a token costs as much in each
    assert row.of_full() == [tokens[2] / tokens[0]] * 3
    assert row.of_episodes() == [1]
    assert forward[ragged.SHORT]().shape[0] == 4  # of 6, 4, 3 and 1 steps on average, rounded up


def test_odd_sizes_and_their_neighbours() -> None:
    assert [odd.up(n, 16) for n in (1, 16, 17)] == [16, 16, 32]
    rows = odd.measure(3, 5, 4, 0.01)
    assert [r.primitive for r in rows] == [kernels.RECURRENCE, kernels.LINEAR]
    assert all(r.most == 5 / 8 and r.of_next_hidden > 0 and r.of_next_batch > 0 for r in rows)


def test_fixed_costs_are_of_calls_that_work() -> None:
    hidden = 3
    inference, training = fixed_costs(hidden).values()
    for name, call in inference.items():
        result = call()
        output = result[0] if isinstance(result, tuple) else result
        assert output.shape[-1] == (1 if name.startswith("an op") else hidden)
    for call in training.values():
        assert [g.shape for g in call()] == [(hidden, hidden), (hidden, hidden), (hidden,), (hidden,)]


def test_busy_processes_keep_cores_busy_and_end() -> None:
    cpus = cores.allowed()[:1]
    with cores.restricted(1), busy.busy(cpus):
        time.sleep(1.0)
        others = cores.Others()
        time.sleep(0.5)
        assert others.cores() > 0.3
    assert busy.rate(lambda: time.sleep(0.01), 0.05) < 100


def test_cuda_cost_names_kernels_and_refuses_without_tools(monkeypatch: pytest.MonkeyPatch) -> None:
    end = "ELb1ELb1EEEvNS0_13DeviceProblemIT_EENS0_4TeamE"
    name = "_ZN7rnn_ext4cuda15sequence_kernelIfNS0_13FloatMultiplyILi2ELi4EEENS0_11WithinBlock" + end
    resident = cuda_code.Identity("float32", "resident", False, 128, 256, 4, True, 16, 16)
    assert cuda_code.identity(name) == resident
    name = "_ZN7rnn_ext4cuda15sequence_kernelINS_{}ENS0_14TensorMultiplyIS2_Li64ELi8ELi24EEENS0_{}" + end
    for mangled, dtype in (("4half", "float16"), ("8bfloat16", "bfloat16")):
        for exchange, variant in (("13WithinCluster", "cluster"), ("12AcrossDevice", "persistent")):
            expected = cuda_code.Identity(dtype, variant, True, 64, 256, 8, True, 24, 1)
            assert cuda_code.identity(name.format(mangled, exchange)) == expected
    kernel = cuda_cost.Cost("sm_90", resident, 135, 1, 0, 0, 485, 970, 512, 275)
    assert "485" in cuda_cost.table([kernel])
    assert cuda_cost.too_much([kernel]) == []
    for worse in ({"conflicts": 1}, {"spilled": 4}, {"blocks": 0}, {"cycles": 2000}):
        assert cuda_cost.too_much([kernel._replace(**worse)])
    for bad, code in (([], 0), ([kernel._replace(conflicts=1)], 1)):
        monkeypatch.setattr(cuda_cost, "costs", lambda *_, bad=bad: [kernel, *bad])
        monkeypatch.setattr(shutil, "which", lambda *_, **__: "here")
        assert cuda_cost.main([]) == code
    monkeypatch.undo()
    monkeypatch.setattr(cuda_code, "tools", lambda: {"PATH": "/nowhere"})
    with pytest.raises(SystemExit, match="nvcc is not on PATH; `make cuda-cost` installs all but nvcc"):
        cuda_cost.main([])
    monkeypatch.setattr(cuda_cost, "OBJECTS", Path("nowhere"))
    with pytest.raises(SystemExit, match=r"nowhere/recurrence.sm_90.o is missing; `make cuda-cost` compiles it"):
        cuda_cost.machine_code("sm_90", Path("here"))


@pytest.mark.parametrize(
    ("capability", "threads", "registers", "shared_bytes", "blocks"),
    [
        (90, 1024, 32, 0, 2),  # threads
        (90, 64, 8, 0, 32),  # blocks
        (90, 256, 128, 0, 2),  # registers
        (90, 256, 129, 0, 1),  # by eights: 136 of each
        (90, 320, 72, 0, 2),  # a scheduler has room for 7 warps of 72 registers, and 28 warps are 2 blocks of 10
        (90, 256, 255, 227 * 1024, 1),
        (90, 256, 255, 227 * 1024 + 1, 0),
        (80, 256, 32, 81 * 1024, 2),  # and 1 KiB each
        (80, 256, 32, 81 * 1024 + 1, 1),
    ],
)
def test_blocks_of_a_multiprocessor(
    capability: int, threads: int, registers: int, shared_bytes: int, blocks: int
) -> None:
    assert cuda_cost.blocks_per_multiprocessor(capability, threads, registers, shared_bytes) == blocks


def test_a_kernels_shared_memory_is_the_most_of_its_plans() -> None:
    lines = ["resident float32 0 128 256 4 512", "resident float32 0 128 256 4 640", "resident float32 0 128 256 1 9"]
    kernel = cuda_code.Identity("float32", "resident", False, 128, 256, 4, True, 16, 16)
    assert cuda_cost.planned_bytes(lines)[cuda_cost.planned(kernel)] == 640
