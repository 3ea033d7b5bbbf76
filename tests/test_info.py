"""What the package says of itself."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from helpers import tf32

import rnn_ext


def test_build_info() -> None:
    info = rnn_ext.build_info()
    assert info["isa"] in info["cpu_isas_runnable"]
    assert set(info["cpu_isas_runnable"]) <= set(info["cpu_isas_compiled"])
    assert info["dtypes"] == ["float32", "float64", "float16", "bfloat16"]
    assert info["threads"] == torch.get_num_threads()
    assert min(info["l1_bytes"], info["l2_bytes"], info["l3_bytes"]) > 0


def test_build_info_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RNN_EXT_CPU_ISA", "baseline")
    assert rnn_ext.build_info()["isa"] == "baseline"
    monkeypatch.setenv("RNN_EXT_CPU_ISA", "mmx")
    with pytest.raises(ValueError, match="RNN_EXT_CPU_ISA is 'mmx'; this machine runs: baseline"):
        rnn_ext.build_info()


def test_explain() -> None:
    text = rnn_ext.explain(100, 32, 256, threads=2)
    assert "2 of 2: 2 over rows x 1 over columns" in text
    assert "because   32 rows split over 2 threads" in text
    assert "1 of 2" in rnn_ext.explain(100, 1, 64, threads=2)
    assert "float64" in rnn_ext.explain(100, 1, 64, dtype=torch.float64)
    # Weights of 1 KiB, and of 64 MiB.
    assert "each tile of rows through all of them" in rnn_ext.explain(100, 32, 16, threads=1)
    assert "all rows through each" in rnn_ext.explain(10, 64, 4096)


def test_explain_a_layer() -> None:
    # Of one row, of rows that fill tiles, with weights beyond any cache, of so few steps that packing would not pay.
    assert "W_ih x_t by the kernel, of some steps ahead" in rnn_ext.explain(100, 1, 64, input_size=64)
    text = rnn_ext.explain(100, 32, 64, input_size=7, threads=1)
    assert "layer T=100 B=32 G=1 I=7 H=64" in text
    assert "W_ih x_t by the kernel, of a tile with its step" in text
    assert "W_ih x_t by PyTorch's GEMM, of all steps beforehand" in rnn_ext.explain(10, 64, 8192, input_size=8)
    assert "which are read as they lie" in rnn_ext.explain(1, 1, 64, input_size=64)
    assert "which are read as they lie" not in rnn_ext.explain(1, 1, 64)


@pytest.mark.parametrize(
    ("kwargs", "sentence"),
    [
        ({"batch": -1}, "batch must not be negative, got -1"),
        ({"input_size": 0}, "input_size must be positive, and of a layer on the CPU, got 0 for cpu"),
        ({"input_size": 8, "device": "A100"}, "input_size must be positive, and of a layer on the CPU, got 8 for A100"),
        (
            {"dtype": torch.int32},
            "dtype must be one with a kernel .float32, float64, float16, bfloat16., got torch.int32",
        ),
        ({"threads": 0}, "threads must be positive, got 0"),
    ],
)
def test_explain_bad_arguments(kwargs: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        rnn_ext.explain(**{"time": 10, "batch": 1, "hidden_size": 8, **kwargs})


def test_explain_cuda() -> None:
    text = rnn_ext.explain(100, 1, 100, device="A100")
    assert text.startswith("recurrence T=100 B=1 G=1 H=100 torch.float32 on A100: resident kernel\n")
    assert "1 part of 1 row, each 1 block of 256 threads" in text
    assert "cluster kernel" in rnn_ext.explain(100, 16, 512, device="H100")
    assert "persistent kernel" in rnn_ext.explain(100, 16, 1024, device="A100")
    assert "stepwise kernel" in rnn_ext.explain(100, 1, 100, device="A100", dtype=torch.float64)
    assert "tensor cores" not in rnn_ext.explain(100, 1024, 128, device="A100")
    with tf32():
        assert "with tensor cores in TF32" in rnn_ext.explain(100, 1024, 128, device="A100")
        assert "tensor cores" not in rnn_ext.explain(100, 1024, 128, device="T4")
    assert "W at H = 8192 does not fit the device" in rnn_ext.explain(100, 1, 8192, device="T4")
    with pytest.raises(ValueError, match="device must be one of A100, B200, H100, RTX 4090, T4, got 'P100'"):
        rnn_ext.explain(1, 1, 1, device="P100")


@pytest.mark.parametrize("device", ["T4", "A100", "RTX 4090", "H100", "B200"])
def test_explain_has_a_reason_for_every_plan(device: str) -> None:
    reasons = {
        "resident": "because   resident, W in a block's registers and shared memory: ",
        "cluster": "because   cluster, W in a cluster's registers and shared memory: ",
        "persistent": "because   persistent, W in the registers and shared memory of many blocks: ",
        "stepwise": "because   stepwise, a launch for each step: ",
    }
    seen = set()
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        for batch in (1, 16, 1024):
            for hidden in (1, 64, 256, 512, 1024, 2048, 8192):
                text = rnn_ext.explain(100, batch, hidden, dtype=dtype, device=device)
                variant = text.partition("\n")[0].split()[-2]
                assert reasons[variant] in text
                seen.add(variant)
    assert seen == (reasons.keys() if device in ("H100", "B200") else reasons.keys() - {"cluster"})


def test_command_line() -> None:
    done = subprocess.run([sys.executable, "-m", "rnn_ext"], check=True, capture_output=True, text=True)
    assert "cpu_isas_runnable" in done.stdout
    assert "because" in done.stdout
