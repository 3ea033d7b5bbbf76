"""What a time step of the CUDA kernels costs, read from their machine code: no GPU needed.

``python -m benchmarks.cuda_cost`` compiles the kernels with nvcc and has cuxray look at them: registers, spills, bank
conflicts, and the schedule that the compiler wrote into the instructions of the loop over time. From that it
estimates a step of a block as the longer of two: one warp's way through the loop, and the issue of all its warps'
instructions. The floor is the multiply-adds alone, on all lanes of float32. Estimates of the static schedule, that is:
latencies of memory are not in them, and a GPU has the last word.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tabulate import tabulate

SOURCE = Path("csrc/cuda/recurrence.cu")
# Their kernels' encodings are those that cuxray knows.
ARCHITECTURES = ("sm_80", "sm_90")
# hidden, threads: the resident ones of kFloatTiles of csrc/cuda/planner.h.
TILES = ((32, 64), (64, 256), (128, 256), (256, 256))
# sequence_kernel<dtype, FloatMultiply<tile, rows>, WithinBlock, plain, one tile>.
KERNEL = re.compile(
    r"sequence_kernelI(f|N\w*?4half|N\w*?8bfloat16)E?N\w*?13FloatMultiplyILi(\d)ELi(\d)EEEN\w*?11WithinBlockELb([01])E"
)
DTYPES = {"f": "float32", "half": "float16", "bfloat16": "bfloat16"}
# Each multiprocessor has four schedulers, which issue an instruction a cycle.
SCHEDULERS, WARP = 4, 32
# Bytes that a thread may spill: what nvcc 13.0 was seen to spill at the most, which a change must not raise.
SPILLED = 28


def lanes(capability: int) -> int:
    """Float32 multiply-adds of a multiprocessor in a cycle; a compute capability is 10 * major + minor."""
    return 64 if capability in (75, 80) else 128


class Cost(NamedTuple):
    """Of one kernel, for a step of one block."""

    architecture: str
    dtype: str
    hidden: int
    rows: int
    plain: bool
    registers: int
    spilled: int
    conflicts: int
    instructions: int
    cycles: int
    floor: int


def tools() -> dict[str, str]:
    """The environment with cuxray and the disassemblers of NVIDIA's packages on PATH."""
    site = Path(sysconfig.get_path("purelib"))
    own = [str(Path(sys.executable).parent), *(str(p) for p in site.glob("nvidia/cu*/bin"))]
    return {**os.environ, "PATH": os.pathsep.join([*own, os.environ.get("PATH", "")])}


def identity(kernel: str) -> tuple[str, int, int, bool]:
    """``(dtype, tile, rows, plain)`` of a resident kernel, from its mangled name."""
    match = KERNEL.search(kernel)
    assert match is not None, kernel
    return DTYPES[re.sub(r"^N\w*?\d(?=half|bfloat16)", "", match[1])], int(match[2]), int(match[3]), match[4] == "1"


def too_much(found: Sequence[Cost]) -> list[Cost]:
    """Those with a bank conflict, or that spill more than was seen."""
    return [c for c in found if c.spilled > SPILLED or c.conflicts]


def look(command: str, cubin: Path) -> Any:
    done = subprocess.run(
        ["cuxray", command, str(cubin), "--kernel", "WithinBlock", "--json"],
        env=tools(),
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def costs(architecture: str, directory: Path) -> list[Cost]:
    """Of every resident kernel on one architecture."""
    cubin = directory / f"{architecture}.cubin"
    nvcc = ["nvcc", "-std=c++17", "-O3", "--expt-relaxed-constexpr", "-Icsrc", f"-arch={architecture}", "-cubin"]
    subprocess.run([*nvcc, str(SOURCE), "-o", str(cubin)], check=True)
    loops = {r["kernel"]: r["loops"] for r in look("sched", cubin)["results"]}
    found = []
    for kernel in look("report", cubin)["units"][0]["kernels"]:
        dtype, tile, rows, plain = identity(kernel["name"])
        hidden, threads = TILES[tile]
        # The loop over time is the longest; the others load W and the seeds.
        loop = max(loops[kernel["name"]], key=lambda found: found["instructions"])
        issue = loop["instructions"] * (threads // WARP) / SCHEDULERS
        found.append(
            Cost(
                architecture,
                dtype,
                hidden,
                rows,
                plain,
                kernel["resources"]["regs"],
                kernel["spills"]["store_bytes"],
                kernel["access"]["conflicted_shared_accesses"],
                loop["instructions"],
                round(max(loop["est_issue_stall_cycles_per_iter"], issue)),
                hidden**2 * rows // lanes(int(architecture.removeprefix("sm_"))),
            )
        )
    return sorted(found, key=lambda c: (c.dtype != "float32", c.dtype, not c.plain, c.hidden, c.rows))


def table(found: Sequence[Cost]) -> str:
    headers = ("dtype", "H up to", "rows", "options", "registers", "spilled bytes", "bank conflicts")
    body = [
        (
            *(c.dtype, c.hidden, c.rows, "none" if c.plain else "any", c.registers, c.spilled, c.conflicts),
            *(c.instructions, c.cycles, c.floor, f"{c.cycles / c.floor:.1f}"),
        )
        for c in found
    ]
    return tabulate(body, (*headers, "instructions a step", "cycles a step", "floor", "ratio"), tablefmt="github")


def main(arguments: Sequence[str] | None = None) -> int:
    """0, or 1 where a kernel has a bank conflict or spills more than it was seen to."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cuda_cost", description=__doc__)
    parser.add_argument(
        "--all", action="store_true", help="every dtype and the kernels with options, not float32 alone"
    )
    args = parser.parse_args(arguments)
    for tool in ("nvcc", "cuxray", "cuobjdump", "nvdisasm"):
        if shutil.which(tool, path=tools()["PATH"]) is None:
            sys.exit(f"{tool} is not on PATH; `make cuda-cost` installs all but nvcc, which the CUDA toolkit has")
    bad = []
    for architecture in ARCHITECTURES:
        with tempfile.TemporaryDirectory() as directory:
            found = costs(architecture, Path(directory))
        bad += too_much(found)
        print(f"{architecture}\n\n{table([c for c in found if args.all or (c.dtype == 'float32' and c.plain)])}\n")
    for c in bad:
        print(f"too much: {c}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
