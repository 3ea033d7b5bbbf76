"""What a time step of the CUDA kernels costs, read from their machine code: no GPU needed.

``python -m benchmarks.cuda_cost`` compiles the kernels with nvcc and has cuxray look at them: registers, spills, bank
conflicts, and the schedule that the compiler wrote into the instructions of the loop over time. From that it
estimates a step of a block as the longest of three: one warp's way through the loop, with the latencies that a schedule
does not know; the issue of all its warps' instructions; and its reading of W from shared memory. The loop is counted
whole, with what a call's epilogue passes by. The floor is the longer of two: the multiply-adds alone, on all lanes of
float32 or on tensor cores; and the way of one sum from the states to the barrier. Where blocks wait for each other, the
floor has that as well, and there is no estimate. A GPU has the last word.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tabulate import tabulate

from .cuda_code import FLOAT_TILES, SOURCE, VARIANTS, WARP, Identity, identity, nvcc, require, tools

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
# Of a team's blocks the floor is that of a step at so many columns of the state; of `resident` at as many as it has.
HIDDEN = {"cluster": 512, "persistent": 1024}
# How many times its floor a step of `resident` in float32 may be estimated at, of the kernels without options at H from
# 64 on; below, all of it is latency, and less of that than of what else a step has to do.
MOST, FROM_COLUMNS = 2.9, 64


def lanes(capability: int) -> int:
    """Float32 multiply-adds of a multiprocessor in a cycle; a compute capability is 10 * major + minor."""
    return 64 if capability in (75, 80) else 128


class Cost(NamedTuple):
    """Of one kernel, for a step of one block; of the resident ones, in which no block waits for another."""

    architecture: str
    kernel: Identity
    registers: int
    spilled: int
    conflicts: int
    instructions: int | None
    cycles: int | None
    issue_floor: int
    latency_floor: int


def slices(k: Identity) -> int:
    """Threads that share a sum."""
    return next(t.slices for t in FLOAT_TILES if (t.columns, t.threads, t.held) == (k.columns, k.threads, k.held))


def waits(k: Identity) -> int:
    """What a warp waits for in a step and its schedule does not say: loads, shuffles, function units, barriers."""
    hand_over = CROSS + 2 * SHARED if k.tensor else slices(k).bit_length() * CROSS - CROSS
    return SHARED + hand_over + 2 * CROSS + CROSS


def latency(k: Identity, hidden: int) -> int:
    """A step's floor by latency alone: a sum's way from the states in shared memory to the states in shared memory."""
    if k.tensor:
        hand_over = CROSS + 2 * SHARED
    else:
        stages = slices(k).bit_length() - 1
        hand_over = stages * (CROSS + ALU)
    # Four multiply-adds at the least, one after the other; an mma takes longer.
    way = SHARED + 4 * ALU + hand_over + ALU + TANH + CROSS
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
    """Those that spill, have a bank conflict, or, of `resident` in float32, take much longer than their floor."""

    def far(c: Cost) -> bool:
        gated = c.kernel.dtype == "float32" and c.kernel.plain and c.kernel.columns >= FROM_COLUMNS
        return gated and c.cycles is not None and c.cycles > MOST * max(c.issue_floor, c.latency_floor)

    return [c for c in found if c.spilled or c.conflicts or far(c)]


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
    nvcc(f"-arch={architecture}", "-cubin", SOURCE, "-o", cubin)
    loops = {r["kernel"]: r["loops"] for r in look("sched", cubin)["results"]}
    found = []
    for unit in look("report", cubin)["units"][0]["kernels"]:
        kernel = identity(unit["name"])
        if kernel.variant == "cluster" and architecture < "sm_90":
            continue  # compiled out
        step: tuple[int | None, int | None] = (None, None)
        if kernel.variant == "resident":
            # The loop over time is the longest; the others load W and the seeds.
            loop = max(loops[unit["name"]], key=lambda found: found["instructions"])
            issue = loop["instructions"] * (kernel.threads // WARP) / SCHEDULERS
            way = loop["est_issue_stall_cycles_per_iter"] + waits(kernel)
            step = loop["instructions"], round(max(way, issue, weights_from_shared(kernel) / SHARED_BYTES_PER_CYCLE))
        resources = unit["resources"]["regs"], unit["spills"]["store_bytes"]
        floors = floor_of(kernel, HIDDEN.get(kernel.variant, kernel.columns), int(architecture.removeprefix("sm_")))
        found.append(
            Cost(architecture, kernel, *resources, unit["access"]["conflicted_shared_accesses"], *step, *floors)
        )

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
    """0, or 1 where a kernel spills, has a bank conflict, or takes much longer than its floor."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cuda_cost", description=__doc__)
    parser.add_argument("--all", action="store_true", help="bfloat16 and the kernels with options, too")
    args = parser.parse_args(arguments)
    require("cuda-cost", "nvcc", "cuxray", "cuobjdump", "nvdisasm")
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
