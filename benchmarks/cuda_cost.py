"""What a time step of the CUDA kernels costs, read from their machine code: no GPU needed.

``python -m benchmarks.cuda_cost`` compiles the kernels with nvcc and has cuxray look at them: registers, spills, bank
conflicts, and the schedule that the compiler wrote into the instructions of the loop over time. From that it
estimates a step of a block as the longer of two: one warp's way through the loop, and the issue of all its warps'
instructions. The floor is the multiply-adds alone, on all lanes of float32 or on tensor cores. Estimates of the static
schedule, that is: latencies of memory are not in them, and a GPU has the last word.
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
# columns, threads: kFloatTiles of csrc/cuda/planner.h.
FLOAT_TILES = ((32, 64), (64, 256), (128, 256), (256, 256), (64, 256), (32, 256))
# sequence_kernel<dtype, FloatMultiply<tile, rows> or TensorMultiply<dtype, columns, warps, held>, exchange, plain, ..>.
KERNEL = re.compile(
    r"sequence_kernelI(f|N\w*?4half|N\w*?8bfloat16)E?N\w*?\d(Float|Tensor)MultiplyI(?:S\d*_)?Li(\d+)ELi(\d+)E\w*?"
    r"\d(WithinBlock|WithinCluster|AcrossDevice)ELb([01])E"
)
DTYPES = {"f": "float32", "half": "float16", "bfloat16": "bfloat16"}
VARIANTS = {"WithinBlock": "resident", "WithinCluster": "cluster", "AcrossDevice": "persistent"}
# Rows that tensor cores multiply at once, and their multiply-adds in a cycle of a multiprocessor, an A100's.
TENSOR_ROWS, TENSOR_RATE = 8, 1024
# Each multiprocessor has four schedulers, which issue an instruction a cycle.
SCHEDULERS, WARP = 4, 32
# Bytes that a thread may spill: what nvcc 13.0 was seen to spill at the most, which a change must not raise.
SPILLED = 76


def lanes(capability: int) -> int:
    """Float32 multiply-adds of a multiprocessor in a cycle; a compute capability is 10 * major + minor."""
    return 64 if capability in (75, 80) else 128


class Identity(NamedTuple):
    """What a kernel is, from its mangled name; ``columns`` of the state are a block's, and ``rows`` of the batch."""

    dtype: str
    variant: str
    tensor: bool
    columns: int
    threads: int
    rows: int
    plain: bool


class Cost(NamedTuple):
    """Of one kernel, for a step of one block; of the resident ones, in which no block waits for another."""

    architecture: str
    kernel: Identity
    registers: int
    spilled: int
    conflicts: int
    instructions: int | None
    cycles: int | None
    floor: int | None


def tools() -> dict[str, str]:
    """The environment with cuxray and the disassemblers of NVIDIA's packages on PATH."""
    site = Path(sysconfig.get_path("purelib"))
    own = [str(Path(sys.executable).parent), *(str(p) for p in site.glob("nvidia/cu*/bin"))]
    return {**os.environ, "PATH": os.pathsep.join([*own, os.environ.get("PATH", "")])}


def identity(kernel: str) -> Identity:
    match = KERNEL.search(kernel)
    assert match is not None, kernel
    dtype = DTYPES[re.sub(r"^N\w*?\d(?=half|bfloat16)", "", match[1])]
    tensor = match[2] == "Tensor"
    first, second = int(match[3]), int(match[4])
    columns, threads, rows = (first, WARP * second, TENSOR_ROWS) if tensor else (*FLOAT_TILES[first], second)
    return Identity(dtype, VARIANTS[match[5]], tensor, columns, threads, rows, match[6] == "1")


def too_much(found: Sequence[Cost]) -> list[Cost]:
    """Those with a bank conflict, or that spill more than was seen."""
    return [c for c in found if c.spilled > SPILLED or c.conflicts]


def look(command: str, cubin: Path) -> Any:
    done = subprocess.run(
        ["cuxray", command, str(cubin), "--kernel", "sequence_kernel", "--json"],
        env=tools(),
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def costs(architecture: str, directory: Path) -> list[Cost]:
    """Of every kernel with a loop over time on one architecture."""
    cubin = directory / f"{architecture}.cubin"
    nvcc = ["nvcc", "-std=c++17", "-O3", "--expt-relaxed-constexpr", "-Icsrc", f"-arch={architecture}", "-cubin"]
    subprocess.run([*nvcc, str(SOURCE), "-o", str(cubin)], check=True)
    loops = {r["kernel"]: r["loops"] for r in look("sched", cubin)["results"]}
    found = []
    for unit in look("report", cubin)["units"][0]["kernels"]:
        kernel = identity(unit["name"])
        if kernel.variant == "cluster" and architecture < "sm_90":
            continue  # compiled out
        step: tuple[int | None, int | None, int | None] = (None, None, None)
        if kernel.variant == "resident":
            # The loop over time is the longest; the others load W and the seeds.
            loop = max(loops[unit["name"]], key=lambda found: found["instructions"])
            issue = loop["instructions"] * (kernel.threads // WARP) / SCHEDULERS
            cycles = round(max(loop["est_issue_stall_cycles_per_iter"], issue))
            rate = TENSOR_RATE if kernel.tensor else lanes(int(architecture.removeprefix("sm_")))
            step = loop["instructions"], cycles, kernel.columns**2 * kernel.rows // rate
        resources = unit["resources"]["regs"], unit["spills"]["store_bytes"]
        found.append(Cost(architecture, kernel, *resources, unit["access"]["conflicted_shared_accesses"], *step))

    def order(cost: Cost) -> tuple[Any, ...]:
        k = cost.kernel
        return k.tensor, k.dtype, not k.plain, list(VARIANTS.values()).index(k.variant), k

    return sorted(found, key=order)


def table(found: Sequence[Cost]) -> str:
    headers = ("dtype", "variant", "columns", "rows", "options", "registers", "spilled bytes", "bank conflicts")
    body = [
        (
            *(c.kernel.dtype, c.kernel.variant, c.kernel.columns, c.kernel.rows),
            *("none" if c.kernel.plain else "any", c.registers, c.spilled, c.conflicts),
            *(c.instructions, c.cycles, c.floor, f"{c.cycles / c.floor:.1f}" if c.cycles and c.floor else None),
        )
        for c in found
    ]
    return tabulate(
        body, (*headers, "instructions a step", "cycles a step", "floor", "ratio"), tablefmt="github", missingval="–"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """0, or 1 where a kernel has a bank conflict or spills more than it was seen to."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cuda_cost", description=__doc__)
    parser.add_argument("--all", action="store_true", help="bfloat16 and the kernels with options, too")
    args = parser.parse_args(arguments)
    for tool in ("nvcc", "cuxray", "cuobjdump", "nvdisasm"):
        if shutil.which(tool, path=tools()["PATH"]) is None:
            sys.exit(f"{tool} is not on PATH; `make cuda-cost` installs all but nvcc, which the CUDA toolkit has")
    bad = []
    for architecture in ARCHITECTURES:
        with tempfile.TemporaryDirectory() as directory:
            found = costs(architecture, Path(directory))
        bad += too_much(found)
        shown = [c for c in found if args.all or (c.kernel.dtype != "bfloat16" and c.kernel.plain)]
        print(f"{architecture}\n\n{table(shown)}\n")
    for c in bad:
        print(f"too much: {c}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
