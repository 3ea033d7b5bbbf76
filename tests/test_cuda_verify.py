"""What `make verify-cuda` does around nvcc and sentryward, without either."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import cuda_code, cuda_ptx, cuda_reference, cuda_verify
from benchmarks.cuda_verify import Case, Launch

KERNEL = "_ZN7rnn_ext4cuda15sequence_kernelIfNS0_13FloatMultiplyILi5ELi1EEENS0_{}ELb1ELb1EEEvNS0_13DeviceProblemIT_EEi"
FLAGS = """
	bar.sync 	0;
	// begin inline asm
	st.release.gpu.global.u32 [%rd8], %r9;
	// end inline asm
	ld.acquire.gpu.global.u32 %r7, [%rd81];
	// end inline asm
	sub.s32 	%r8, %r7, %r9;
	bar.sync 	0;
"""
WINDOWS = """
	mapa.u64 %rd1, %rd2, %r3;
	st.f32 	[%rd1], %f1;
	barrier.cluster.arrive.release;
	// end inline asm
	barrier.cluster.wait.acquire;
"""


def ptx(*kernels: tuple[str, str]) -> str:
    text = ".version 9.0\n.target sm_90\n.global .align 1 .b8 $str[2] = {10, 0};\n\n"
    for name, body in kernels:
        text += f"""\t// .globl\t{name}
.visible .entry {name}(
	.param .align 8 .b8 {name}_param_0[16],
	.param .u32 {name}_param_1
)
.maxntid 64, 1, 1
{{
	.reg .pred 	%p<9>;
	.reg .b32 	%r<17>;

	mov.u32 	%r1, %tid.x;{body}	ret;

}}
"""
    return text


def test_kernels_are_parted() -> None:
    found = cuda_ptx.entries(ptx(("one", "\n"), ("two", FLAGS)))
    assert {name: entry.parameter_bytes for name, entry in found.items()} == {"one": (16, 4), "two": (16, 4)}
    for name, entry in found.items():
        assert entry.text.startswith(".version") and "$str" in entry.text
        assert entry.text.count(".visible .entry") == 1 and f".entry {name}(" in entry.text
    assert cuda_ptx.count(cuda_ptx.BARRIER, found["two"].text) == 2


def test_flags_become_mbarriers_and_nothing_else_does() -> None:
    entry = cuda_ptx.entries(ptx(("k", FLAGS)))["k"].text
    text = cuda_ptx.with_mbarriers(entry, 3)
    assert "st.release" not in text and "ld.acquire" not in text
    assert text.count("mbarrier.init") == 6  # for each block, of odd epochs and of even ones
    assert text.count("mbarrier.arrive.release.cluster") == 3 and text.count("mbarrier.try_wait") == 1
    # Its own barrier comes first, and after the declarations.
    assert [m[0] for m in cuda_ptx.BARRIER.finditer(text)][1:] == [m[0] for m in cuda_ptx.BARRIER.finditer(entry)]
    assert text.index(".reg .b32 \t%r<17>") < text.index("barrier.cluster") < text.index("mov.u32 \t%r1")
    for odd in (entry.replace("st.release", "st"), entry.replace("sub.s32", "add.s32"), entry.replace("acquire", "x")):
        with pytest.raises(ValueError, match="as they were expected"):
            cuda_ptx.with_mbarriers(odd, 3)


def test_addresses_in_other_blocks_are_said_in_their_window() -> None:
    entry = cuda_ptx.entries(ptx(("k", WINDOWS)))["k"].text
    text = cuda_ptx.with_shared_windows(entry)
    assert "mapa.shared::cluster.u64" in text and "\tst.shared::cluster.f32 \t[%rd1], %f1;" in text
    for odd in (entry + "\tst.f32 [%rd3], %f1;", entry.replace("mapa", "x")):
        with pytest.raises(ValueError, match="addresses in other blocks"):
            cuda_ptx.with_shared_windows(odd)


def test_mistakes_are_planted_one_at_a_time() -> None:
    entry = cuda_ptx.entries(ptx(("k", FLAGS + WINDOWS)))["k"].text
    assert cuda_ptx.count(cuda_ptx.BARRIER, entry) == 3
    for n in range(3):
        text = cuda_ptx.without(cuda_ptx.BARRIER, n, entry)
        assert cuda_ptx.count(cuda_ptx.BARRIER, text) == 2
        assert ("barrier.cluster" in text) == (n < 2)
    with pytest.raises(IndexError):
        cuda_ptx.without(cuda_ptx.BARRIER, 3, entry)
    late = cuda_ptx.without(cuda_ptx.COPIES, 0, "cp.async.wait_group 2;", "cp.async.wait_group 3;")
    assert late == "cp.async.wait_group 3;"


def test_a_reference_is_bound_to_the_kernels_objects(tmp_path: Path) -> None:
    options = cuda_reference.write(tmp_path, (3, 2, 4), wrong=False)
    binding = json.loads(Path(options[3]).read_text())
    assert [a["shape"] for a in binding["reference"]["arguments"]] == [[4, 4], [3, 2, 4], [3, 2, 4], [2, 4]]
    output, last = binding["outputs"]["tensors"]
    assert output["right_allocation"] == "6:global6:output" and last["right_allocation"] == "6:global4:last"
    assert output["right_strides_bytes"] == [32, 16, 4]
    assert set(binding["right_inputs"]["allocations"].values()) == set(binding["left_inputs"]["allocations"])
    weight, v, f = torch.randn(4, 4), torch.randn(3, 2, 4), torch.randn(3, 2, 4)
    seed = torch.randn(2, 4)
    code: dict[str, Any] = {}
    exec(cuda_reference.REFERENCE.format(weight="weight"), code)
    states, final = code["reference"](weight, v, f, seed)
    torch.testing.assert_close(states[0], f[0] * (v[0] + seed))
    torch.testing.assert_close(states[2], f[2] * (v[2] + states[1] @ weight))
    torch.testing.assert_close(final, states[2])


def a_launch(kernel: str = KERNEL.format("12AcrossDevice"), blocks: int = 2) -> Launch:
    words = [3, 0x7F0100000000]
    problem = b"".join(word.to_bytes(8, "little") for word in words).hex()
    team = blocks.to_bytes(4, "little").hex()
    lines = ["object 7f0100000000 length 2 1", f"launch {kernel} 2,1,1 256 1 6656 {problem} {team}"]
    (found,) = cuda_verify.parse(lines)
    return found


def test_a_launch_becomes_a_request() -> None:
    launch = a_launch()
    assert launch.grid == (2, 1, 1) and (launch.threads, launch.cluster, launch.shared_bytes) == (256, 1, 6656)
    text, cluster = cuda_verify.translated(launch, ptx((launch.kernel, FLAGS)))
    assert cluster == 2 and text.count("mbarrier.arrive") == 2
    found = cuda_verify.request(launch, cluster)
    assert found["launch"]["cluster_dim"] == [2, 1, 1]
    (length,) = found["declarations"]
    assert (length["parameter"], length["offset"], length["object"]) == (0, 8, "length")
    assert found["shape_arrays"][0]["shapes"] == [[2], [1]]
    values = [(a["parameter"], a["offset"], a["type"], a["value"]) for a in found["arguments"]]
    assert values == [(0, 0, "u64", 3), (1, 0, "u32", 2)]
    assert cuda_verify.variant("_ZN7rnn_ext4cuda15stepwise_kernelIfEEv") == "stepwise"
    assert cuda_verify.variant(KERNEL.format("13WithinCluster")) == "cluster"


@pytest.mark.parametrize(
    ("report", "expected"),
    [
        ({"result": "race_free", "checks": {"synchronization": "passed", "memory": "passed"}}, "race_free"),
        ({"result": "race_free", "checks": {"synchronization": "passed", "memory": "incomplete"}}, "race_free: "),
        (
            {
                "result": "potential_race",
                "checks": {"synchronization": "passed", "memory": "failed"},
                "diagnostics": [{"code": "c", "message": "two writes"}, {"code": "other"}],
            },
            "potential_race: two writes; other",
        ),
    ],
)
def test_a_proof_is_both_checks(monkeypatch: pytest.MonkeyPatch, report: dict[str, Any], expected: str) -> None:
    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        assert "mbarrier" in Path(command[1]).read_text()
        assert json.loads(Path(command[3]).read_text())["entry"].startswith("_ZN7rnn_ext")
        return subprocess.CompletedProcess(command, 0, json.dumps(report), "")

    monkeypatch.setattr(subprocess, "run", run)
    launch = a_launch()
    assert cuda_verify.verdict(launch, ptx((launch.kernel, FLAGS))) == expected


def test_it_fails_where_a_proof_is_missing_or_a_race_goes_unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    resident = KERNEL.format("11WithinBlock")
    kernels = cuda_ptx.entries(ptx((resident, "\n\tbar.sync 0;\n\tcp.async.wait_group 2;\n\tbar.sync 0;\n")))
    monkeypatch.setattr(cuda_verify, "build", lambda _: kernels)
    monkeypatch.setattr(cuda_verify, "launches", lambda *_: [a_launch(resident)])
    monkeypatch.setattr(cuda_verify, "CASES", (Case("resident", 4, 1, 1, 32),))
    monkeypatch.setattr(cuda_verify, "PLANTED", (Case("resident", 3, 1, 1, 32),))
    monkeypatch.setattr(shutil, "which", lambda *_, **__: "here")

    def says(race_free: Callable[[str], bool]) -> None:
        def verdict(_: Launch, text: str, change: Callable[[str], str] = str, *reference: Any) -> str:
            if reference:
                return "equivalence_not_proven: x" if reference[1:] == (True,) else "verified"
            return "race_free" if race_free(change(text)) else "potential_race: here"

        monkeypatch.setattr(cuda_verify, "verdict", verdict)

    says(lambda text: text.count("bar.sync") == 2 and "wait_group 2" in text)
    assert cuda_verify.main([]) == 0
    says(lambda text: True)
    assert cuda_verify.main([]) == 1
    says(lambda text: text.count("bar.sync") == 2)  # the late copies go unseen
    assert cuda_verify.main([]) == 1
    says(lambda text: False)
    assert cuda_verify.main([]) == 1
    monkeypatch.setattr(cuda_verify, "verdict", lambda *_: "timeout: neither a proof nor a finding")
    assert cuda_verify.main([]) == 1


def test_it_refuses_without_tools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_code, "tools", lambda: {"PATH": "/nowhere"})
    with pytest.raises(SystemExit, match="nvcc is not on PATH; `make verify-cuda` installs all but nvcc"):
        cuda_verify.main([])
