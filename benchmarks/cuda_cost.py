"""What a time step of the CUDA kernels costs, read from their machine code: no GPU needed.

``make cuda-cost`` compiles the kernels with nvcc and has cuxray look at them: registers, spills, bank conflicts, and
the schedule that the compiler wrote into the instructions of the loop over time. From registers, threads and the shared
memory of the planner's plans (cuda_plans.cpp) it finds how many blocks a multiprocessor has room for; from the schedule
it estimates a step of a block as the longest of four: one warp's way through the loop, with the latencies that a
schedule does not know; the issue of all its warps' instructions; its multiply-adds alone; and its reading of W from
shared memory. The loop is counted whole, with what a call's epilogue passes by. The floor is the longer of two: the
multiply-adds alone, on all lanes of float32 or on tensor cores; and the way of one sum from the states to the barrier.
Where blocks wait for each other, the floor has that as well, and there is no estimate. A GPU has the last word.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from tabulate import tabulate

from .cuda_code import SOURCE, VARIANTS, WARP, Identity, identity, nvcc, require, tools

# Where CMake compiles for nvcc.
OBJECTS = Path("build/native")
# Their kernels' encodings are those that cuxray knows.
ARCHITECTURES = ("sm_80", "sm_90")
# Multiply-adds of tensor cores in a cycle of a multiprocessor, an A100's.
TENSOR_RATE = {"float16": 1024, "bfloat16": 1024, "TF32": 512}
# Cycles until a result is there. ALU: a float32 operation (Abdelkhalik et al., arXiv 2208.11174). SHARED, L2, REMOTE: a
# load from shared memory, from L2, from another block's shared memory (Luo et al., arXiv 2402.13499; an H100's).
# CROSS: a shuffle, a function unit (exp2, 1/x), a barrier of a block, which are all said to take a little over 20.
ALU, SHARED, L2, REMOTE, CROSS = 4, 29, 263, 180, 22
# tanh_of of csrc/cuda/track.cuh: 14 operations one after the other, and exp2 and 1/x between them.
TANH = 14 * ALU + 2 * CROSS
SHARED_BYTES_PER_CYCLE, L2_BYTES_PER_CYCLE = 128, 64  # of a multiprocessor
# Each multiprocessor has four schedulers, which issue an instruction a cycle.
SCHEDULERS = 4
# A multiprocessor of compute capability 8.0 or 9.0, and how it allots (CUDA's programming guide, tables of compute
# capabilities): registers to a warp by the 256, equally many warps to each scheduler; shared memory to a block by the
# 128 bytes, of which CUDA keeps 1 KiB for itself. SHARED_BYTES by capability: of a multiprocessor; a block may ask for
# 1 KiB less.
REGISTERS, REGISTER_UNIT, MOST_WARPS, MOST_BLOCKS, SHARED_UNIT, RESERVED = 65536, 256, 64, 32, 128, 1024
SHARED_BYTES = {80: 164 * 1024, 90: 228 * 1024}
# Of a team's blocks the floor is that of a step at so many columns of the state; of `resident` at as many as it has.
HIDDEN = {"cluster": 512, "persistent": 1024}
# How many times its floor a step of `resident` in float32 may be estimated at, of the kernels without options at H from
# 64 on; below, all of it is latency, and less of that than of what else a step has to do.
MOST, FROM_COLUMNS = 2.4, 64


def lanes(capability: int) -> int:
    """Float32 multiply-adds of a multiprocessor in a cycle; a compute capability is 10 * major + minor."""
    return 64 if capability in (75, 80) else 128


class Cost(NamedTuple):
    """Of one kernel, for a step of one block; of the resident ones, in which no block waits for another."""

    architecture: str
    kernel: Identity
    registers: int
    # That a multiprocessor has room for, with as much shared memory as any plan for it asks for; None: no plan has it.
    blocks: int | None
    spilled: int
    conflicts: int
    instructions: int | None
    cycles: int | None
    issue_floor: int
    latency_floor: int


def ceil_to(n: int, unit: int) -> int:
    return -(-n // unit) * unit


def blocks_per_multiprocessor(capability: int, threads: int, registers: int, shared_bytes: int) -> int:
    """How many blocks are there at a time: as many as have threads, registers of a thread and shared memory."""
    warps = threads // WARP
    with_registers = REGISTERS // SCHEDULERS // ceil_to(registers * WARP, REGISTER_UNIT) * SCHEDULERS
    with_shared = SHARED_BYTES[capability] // ceil_to(shared_bytes + RESERVED, SHARED_UNIT)
    return min(MOST_BLOCKS, MOST_WARPS // warps, with_registers // warps, with_shared)


def hand_over(k: Identity) -> tuple[int, int]:
    """How a sum gets together from the threads that share it: cycles of crossing to others, and of additions."""
    if k.tensor:
        return CROSS + 2 * SHARED, 0
    stages = k.slices.bit_length() - 1
    return stages * CROSS, stages * ALU


def waits(k: Identity) -> int:
    """What a warp waits for in a step and its schedule does not say: loads, shuffles, function units, barriers."""
    return SHARED + hand_over(k)[0] + 2 * CROSS + CROSS


def latency(k: Identity, hidden: int) -> int:
    """A step's floor by latency alone: a sum's way from the states in shared memory to the states in shared memory."""
    # Four multiply-adds at the least, one after the other; an mma takes longer.
    way = SHARED + 4 * ALU + sum(hand_over(k)) + ALU + TANH + CROSS
    if k.variant == "cluster":
        # Stores reach the other blocks, then their barrier does.
        return way + 2 * REMOTE
    if k.variant == "persistent":
        # States reach L2, then a flag; the flag is seen, then states are read, whole ones by each block.
        element = 2 if k.dtype in ("float16", "bfloat16") else 4
        return way + 4 * L2 + k.rows * hidden * element // L2_BYTES_PER_CYCLE
    return way


def floor_of(k: Identity, hidden: int, capability: int) -> tuple[int, int]:
    """Cycles of a step by multiply-adds and by latency, at a state of ``hidden`` columns."""
    rate = TENSOR_RATE[k.dtype] if k.tensor else lanes(capability)
    return k.columns * hidden * k.rows // rate, latency(k, hidden)


def weights_from_shared(k: Identity) -> int:
    """Bytes of W that a step of `resident` reads from shared memory."""
    element = 2 if k.tensor and k.dtype != "TF32" else 4
    return max(0, k.columns**2 * element - 16 * k.held * k.threads)


def too_much(found: Sequence[Cost]) -> list[Cost]:
    """Those that spill, have a bank conflict, find no room, or, of `resident` in float32, are far from their floor.

    The planner gives a block a multiprocessor to itself, and a cooperative launch is one of blocks that are all there.
    """

    def far(c: Cost) -> bool:
        gated = c.kernel.dtype == "float32" and c.kernel.plain and c.kernel.columns >= FROM_COLUMNS
        return gated and c.cycles is not None and c.cycles > MOST * max(c.issue_floor, c.latency_floor)

    return [c for c in found if c.spilled or c.conflicts or c.blocks == 0 or far(c)]


def machine_code(architecture: str, directory: Path) -> Path:
    """That of the kernels, out of what CMake compiled."""
    built = OBJECTS / f"{SOURCE.stem}.{architecture}.o"
    if not built.exists():
        sys.exit(f"{built} is missing; `make cuda-cost` compiles it")
    into = directory / architecture
    into.mkdir()
    extract = ["cuobjdump", "-xelf", "all", str(built.absolute())]
    subprocess.run(extract, cwd=into, env=tools(), check=True, stdout=subprocess.DEVNULL)
    (cubin,) = into.iterdir()
    return cubin


def look(command: str, cubin: Path) -> Any:
    done = subprocess.run(
        ["cuxray", command, str(cubin), "--kernel", "sequence_kernel", "--json"],
        env=tools(),
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def planned_bytes(lines: Sequence[str]) -> dict[tuple[str, ...], int]:
    """What cuda_plans.cpp prints: the most shared memory that a plan asks for, by what `planned` says of its kernel."""
    found: dict[tuple[str, ...], int] = {}
    for *kernel, shared_bytes in map(str.split, lines):
        found[tuple(kernel)] = max(found.get(tuple(kernel), 0), int(shared_bytes))
    return found


def planned(k: Identity) -> tuple[str, ...]:
    return k.variant, k.dtype, str(int(k.tensor)), str(k.columns), str(k.threads), str(k.rows)


def plans(capability: int, directory: Path) -> dict[tuple[str, ...], int]:
    """The planner's shared memory, dynamic, for a device of this capability."""
    program = directory / f"plans.sm_{capability}"
    nvcc("benchmarks/cuda_plans.cpp", "csrc/cuda/planner.cpp", "-o", program)
    asked = [str(program), str(capability), str(SHARED_BYTES[capability] - RESERVED)]
    return planned_bytes(subprocess.run(asked, capture_output=True, text=True, check=True).stdout.splitlines())


def costs(architecture: str, directory: Path) -> list[Cost]:
    """Of every kernel with a loop over time on one architecture."""
    capability = int(architecture.removeprefix("sm_"))
    shared = plans(capability, directory)
    cubin = machine_code(architecture, directory)
    loops = {r["kernel"]: r["loops"] for r in look("sched", cubin)["results"]}
    found = []
    for unit in look("report", cubin)["units"][0]["kernels"]:
        kernel = identity(unit["name"])
        if kernel.variant == "cluster" and architecture < "sm_90":
            continue  # compiled out
        floors = floor_of(kernel, HIDDEN.get(kernel.variant, kernel.columns), capability)
        step: tuple[int | None, int | None] = (None, None)
        if kernel.variant == "resident":
            # The loop over time is the longest; the others load W and the seeds.
            loop = max(loops[unit["name"]], key=lambda found: found["instructions"])
            issue = loop["instructions"] * (kernel.threads // WARP) / SCHEDULERS
            way = loop["est_issue_stall_cycles_per_iter"] + waits(kernel)
            reading = weights_from_shared(kernel) / SHARED_BYTES_PER_CYCLE
            step = loop["instructions"], round(max(way, issue, reading, floors[0]))
        registers = unit["resources"]["regs"]
        blocks = None
        if planned(kernel) in shared:
            shared_bytes = unit["resources"]["smem_static"] + shared[planned(kernel)]
            blocks = blocks_per_multiprocessor(capability, kernel.threads, registers, shared_bytes)
        resources = registers, blocks, unit["spills"]["store_bytes"]
        found.append(
            Cost(architecture, kernel, *resources, unit["access"]["conflicted_shared_accesses"], *step, *floors)
        )

    def order(cost: Cost) -> tuple[Any, ...]:
        k = cost.kernel
        return k.tensor, k.dtype, not k.plain, list(VARIANTS.values()).index(k.variant), k

    return sorted(found, key=order)


def table(found: Sequence[Cost]) -> str:
    headers = (
        "dtype",
        "variant",
        "columns",
        "rows",
        "options",
        "registers",
        "blocks",
        "spilled bytes",
        "bank conflicts",
    )
    body = [
        (
            *(c.kernel.dtype, c.kernel.variant, c.kernel.columns, c.kernel.rows),
            *("none" if c.kernel.plain else "any", c.registers, c.blocks, c.spilled, c.conflicts),
            *(c.instructions, c.cycles, c.issue_floor, c.latency_floor),
            f"{c.cycles / max(c.issue_floor, c.latency_floor):.1f}" if c.cycles else None,
        )
        for c in found
    ]
    return tabulate(
        body,
        (*headers, "instructions a step", "cycles a step", "floor: multiply-adds", "floor: latency", "ratio"),
        tablefmt="github",
        missingval="–",
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """0, or 1 where a kernel spills, has a bank conflict, no room, or takes much longer than its floor."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cuda_cost", description=__doc__)
    parser.add_argument("--all", action="store_true", help="bfloat16 and the kernels with options, too")
    args = parser.parse_args(arguments)
    require("cuda-cost", "nvcc", "cuxray", "cuobjdump", "nvdisasm")
    bad = []
    # Each is some minutes of cuxray, which keep one core busy.
    with tempfile.TemporaryDirectory() as directory, ThreadPoolExecutor(len(ARCHITECTURES)) as pool:
        of_all = list(pool.map(lambda architecture: costs(architecture, Path(directory)), ARCHITECTURES))
    for architecture, found in zip(ARCHITECTURES, of_all, strict=True):
        bad += too_much(found)
        shown = [c for c in found if args.all or (c.kernel.dtype != "bfloat16" and c.kernel.plain)]
        print(f"{architecture}\n\n{table(shown)}\n")
    for c in bad:
        print(f"too much: {c}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
