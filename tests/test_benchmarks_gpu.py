"""The benchmark of a GPU, on machines without one: the CPU in its place, and events that count calls."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import rnn_ext
from benchmarks import gpu
from benchmarks.grid import FORWARD, MODES, TRAINING, Shape
from benchmarks.peers import OURS, TORCH, Disagrees
from benchmarks.timing import by_clock, take_turns

SHAPES = [
    Shape(4, 3, 5, 7),
    Shape(5, 2, 4, 4, bidirectional=True),
    Shape(4, 3, 5, 7, num_layers=2, bidirectional=True),
    Shape(4, 3, 5, 7, packed=True),
]


class FakeEvent:
    """As torch.cuda.Event, of a device on which a call takes half a millisecond."""

    calls = 0

    def __init__(self) -> None:
        self.at: int | None = None
        self.waited = False

    def record(self) -> None:
        self.at = FakeEvent.calls

    def synchronize(self) -> None:
        assert self.at is not None, "waits for an event that was never recorded"
        self.waited = True

    def elapsed_time(self, end: FakeEvent) -> float:
        assert end.waited, "asked before the device was there"
        assert self.at is not None and end.at is not None
        return 0.5 * (end.at - self.at)


def fake_call() -> None:
    FakeEvent.calls += 1


def test_events_are_waited_for_and_give_seconds_a_call() -> None:
    assert gpu.by_events(FakeEvent)(fake_call, 7) == pytest.approx(0.5e-3)


def test_turns_are_timed_by_the_timer_that_was_given() -> None:
    samples = take_turns(
        {"a": fake_call, "b": lambda: (fake_call(), fake_call())},
        rounds=3,
        seconds=0.05,
        settle=lambda: None,
        timer=gpu.by_events(FakeEvent),
    )
    assert samples["a"].times == pytest.approx((0.5e-3,) * 3)
    assert samples["b"].times == pytest.approx((1e-3,) * 3)


def fake_machine() -> gpu.Machine:
    """A GPU by name, the CPU by device."""
    return gpu.Machine(torch.device("cpu"), "NVIDIA Fake (80GB)", "A100", 1e12, lambda: None, by_clock)


def test_gpu_grid_covers_what_it_promises() -> None:
    assert len({str(shape) for shape in gpu.SHAPES}) == len(gpu.SHAPES)
    assert all(shape.input_size == shape.hidden_size for shape in gpu.SHAPES)
    assert {shape.batch for shape in gpu.SHAPES} >= {1, 32, 512}
    for kind in ("packed", "bidirectional"):
        assert any(getattr(shape, kind) for shape in gpu.SHAPES)
    assert any(shape.num_layers == 2 for shape in gpu.SHAPES)
    assert list(gpu.PRECISIONS) == ["float32", "float32 TF32", "bfloat16", "float16"]
    plans = {rnn_ext.explain(s.time, s.batch, s.hidden_size, device="H100").split("kernel")[0] for s in gpu.SHAPES}
    assert {plan.split()[-1] for plan in plans} == {"resident", "cluster", "persistent", "stepwise"}


def test_gpu_floor_is_the_multiply_adds() -> None:
    shape = Shape(4, 3, 5, 7, num_layers=2, bidirectional=True, packed=True)
    assert fake_machine().floor(shape, FORWARD) == pytest.approx(shape.flops / 2 / 1e12)
    assert fake_machine().floor(shape, TRAINING) > 2 * shape.flops / 2 / 1e12


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("precision", gpu.PRECISIONS)
def test_gpu_contestants_agree_in_every_precision(shape: Shape, mode: str, precision: str) -> None:
    row = gpu.measure(fake_machine(), shape, mode, gpu.PRECISIONS[precision], 1e-3)
    assert not row["failed"], row["notes"]
    assert set(row["peers"]) == {OURS, TORCH, gpu.LOOP} - ({gpu.LOOP} if shape.packed else set())
    assert ("limit" in row) == (precision == "float32")


def test_gpu_precision_is_the_same_on_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[bool, bool]] = []

    class Spy(nn.RNN):
        def forward(self, *args: Any) -> Any:
            assert self.weight_hh_l0.dtype == args[0].dtype == torch.float32
            seen.append((torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32))
            return super().forward(*args)

    monkeypatch.setattr(gpu.nn, "RNN", Spy)
    monkeypatch.setattr(gpu.rnn_ext, "RNN", Spy)
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    for precision, allowed in (("float32", False), ("float32 TF32", True)):
        seen.clear()
        gpu.measure(fake_machine(), SHAPES[0], FORWARD, gpu.PRECISIONS[precision], 1e-3)
        assert len(seen) > 2
        assert set(seen) == {(allowed, allowed)}
    assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == before


def test_gpu_compares_before_it_times(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(rnn_ext.RNN):
        def forward(self, *args: Any) -> Any:
            output, last = super().forward(*args)
            return output * 1.01, last

    def timer(call: Any, repeats: int) -> float:
        raise AssertionError("timed what computes something else")

    monkeypatch.setattr(gpu.rnn_ext, "RNN", Wrong)
    machine = dataclasses.replace(fake_machine(), timer=timer)
    with pytest.raises(Disagrees, match="output differs by"):
        gpu.measure(machine, SHAPES[0], FORWARD, gpu.PRECISIONS["float32"], 1e-3)


def test_gpu_from_the_command_line_to_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gpu.main(["--only", "100x17x101x101", "--seconds", "0.01", "--out", str(tmp_path / "new")], fake_machine())
    shown = capsys.readouterr().out
    assert "NVIDIA Fake (80GB): µs a step" in shown
    lines = [line for line in shown.splitlines() if "100x17x101x101" in line]
    assert len(lines) == len(MODES) * len(gpu.PRECISIONS)
    assert all("resident" in line for line in lines)
    data = json.loads((tmp_path / "new" / "NVIDIA-Fake-80GB.json").read_text())
    assert [(row["mode"], row["precision"]) for row in data["rows"]] == [(m, p) for m in MODES for p in gpu.PRECISIONS]
    for measured in data["rows"]:
        assert measured["ratio"] > 0
        assert "on A100: resident kernel" in measured["plan"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, and nothing to refuse")
def test_gpu_refuses_in_a_sentence() -> None:
    with pytest.raises(SystemExit, match="needs a GPU, and PyTorch finds no CUDA device"):
        gpu.main([])


def test_gpu_refuses_a_build_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(rnn_ext, "build_info", lambda: {"cuda": False})
    with pytest.raises(SystemExit, match="built with CUDA kernels; `make bench-gpu` builds it so"):
        gpu.main([])


def test_gpu_asks_the_device_for_its_lanes_and_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    found = SimpleNamespace(name="A100", major=8, minor=0, multi_processor_count=108, clock_rate=1_410_000)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(rnn_ext, "build_info", lambda: {"cuda": True})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda: found)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    # Its data sheet says 19.5 TFLOPS.
    assert 2 * gpu.this_machine().multiply_adds == pytest.approx(19.5e12, rel=0.01)
