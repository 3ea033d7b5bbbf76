"""Whether the CUDA kernels are free of races, proven from their PTX: no GPU needed.

``python -m benchmarks.cuda_verify`` compiles the float32 kernels for sm_90, asks their own host code what it launches
for some problems (cuda_launches.cpp), and has sentryward prove of each launch that its barriers are the same in every
order of its threads, and that of every two accesses to the same memory, of which one writes, one comes before the
other. Sizes and lengths are those of the launch: for these alone it is proven. Of some linear recurrences it proves
that they are what PyTorch computes, too, in real arithmetic (cuda_reference.py). Then it plants mistakes: each barrier
is taken out in turn, and the proof has to fail.

docs/cuda.md says what the proof leaves out.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from tabulate import tabulate

from . import cuda_ptx, cuda_reference
from .cuda_code import SOURCE, identity, nvcc, require, tools

# The kernels with clusters begin here, and copies are asynchronous.
CAPABILITY = 90
# By their numbers in csrc/cuda/planner.h and csrc/recurrence.h.
NUMBERS = {
    **{"resident": 0, "cluster": 1, "persistent": 2, "stepwise": 3},
    **{"tanh": 0, "relu": 1, "tanh'": 2, "relu'": 3, "given": 4},
    **{"zeros": 0, "state": 1, "product": 2},
}
FINDINGS = ("potential_race", "not_wellsynced", "equivalence_not_proven")
# Seconds for a proof; the longest here takes about half a minute.
PATIENCE = 600


class Case(NamedTuple):
    """A problem and the variant that it is given to; ``activation``: primed or given of the linear recurrence."""

    variant: str
    time: int
    batch: int
    groups: int
    hidden: int
    activation: str = "tanh"
    seed: str = "state"
    options: tuple[str, ...] = ()
    # Of the device: where they are few, blocks take several rows at once, or several parts of the batch in turn.
    multiprocessors: int = 132


class Launch(NamedTuple):
    kernel: str
    grid: tuple[int, ...]
    threads: int
    cluster: int
    shared_bytes: int
    parameters: tuple[bytes, ...]
    objects: dict[int, tuple[str, list[int]]]  # address: name, and integers that it holds


class Plant(NamedTuple):
    """A mistake in the kernel of a case."""

    what: str
    case: Case
    change: Callable[[str], str]


# T = 4: the third slot of inputs is used again, both buffers of states twice; T = 3: both are read and written again.
# Two groups: one forward, one reversed. Proofs of teams of blocks take longest, so these are just wide enough for two.
CASES = (
    Case("resident", 4, 1, 2, 20),
    Case("resident", 4, 1, 1, 32, "tanh'", "product"),
    Case("resident", 4, 6, 1, 32, "given", "zeros", multiprocessors=1),
    Case("resident", 4, 1, 1, 64, "relu'", "product"),
    Case("resident", 3, 1, 1, 65, "relu", "zeros"),
    Case("resident", 4, 2, 1, 32, options=("lengths",)),
    Case("resident", 4, 2, 1, 32, "given", "product", ("packed", "mask")),
    Case("stepwise", 2, 2, 2, 20),
    Case("stepwise", 2, 33, 1, 20, "tanh'", "product"),
    Case("stepwise", 2, 1, 1, 65, "given", "product"),
    Case("stepwise", 3, 3, 1, 20, "relu", options=("packed", "mask")),
    Case("cluster", 3, 1, 1, 72),
    Case("cluster", 2, 1, 1, 65, "relu", options=("lengths",)),
    Case("persistent", 3, 1, 1, 33),
    Case("persistent", 2, 1, 1, 40, "given", "product"),
    Case("persistent", 2, 2, 1, 32, "tanh'", multiprocessors=1),
)
# Linear recurrences that are proven to be what PyTorch computes, and free of races: one group, from a ready product.
# Not persistent: its workspace is an output as well, to the verifier, and nothing in the reference is that. The first
# is so small because it takes long to be told from another reference.
EQUAL = (
    Case("resident", 2, 1, 1, 4, "given", "product"),
    Case("resident", 3, 2, 1, 8, "given", "product"),
    Case("cluster", 2, 1, 1, 65, "given", "product"),
)

# Two blocks, where there are teams: in a team of one, one barrier is enough where two have to be.
PLANTED = (
    Case("resident", 3, 1, 1, 32),
    Case("stepwise", 1, 2, 1, 20),
    Case("cluster", 2, 1, 1, 65),
    Case("persistent", 2, 1, 1, 33),
)


def build(directory: Path) -> dict[str, cuda_ptx.Entry]:
    """Compiles the kernels, and ``directory``/launches with their host code; returns the kernels."""
    target = directory / "kernels.o"
    architecture = f"arch=compute_{CAPABILITY},code=compute_{CAPABILITY}"
    nvcc("-gencode", architecture, "--keep", "--keep-dir", directory, "-c", SOURCE, "-o", target)
    # cuda_launches.cpp has what the code asks of CUDA's runtime.
    host = ("benchmarks/cuda_launches.cpp", target, "csrc/cuda/planner.cpp")
    nvcc("-cudart", "none", *host, "-o", directory / "launches")
    return cuda_ptx.entries((directory / SOURCE.with_suffix(".ptx").name).read_text())


def parse(lines: Sequence[str]) -> list[Launch]:
    """What cuda_launches.cpp prints."""
    objects: dict[int, tuple[str, list[int]]] = {}
    found = []
    for line in lines:
        what, *words = line.split()
        if what == "object":
            objects[int(words[0], 16)] = words[1], [int(n) for n in words[2:]]
        else:
            kernel, grid, threads, cluster, shared, *parameters = words
            found.append(
                Launch(
                    *(kernel, tuple(int(n) for n in grid.split(",")), int(threads), int(cluster), int(shared)),
                    *(tuple(bytes.fromhex(p) for p in parameters), objects),
                )
            )
    return found


def launches(directory: Path, kernels: dict[str, cuda_ptx.Entry], case: Case) -> list[Launch]:
    numbers = (
        *(NUMBERS[case.variant], CAPABILITY, case.multiprocessors, case.time, case.batch, case.groups, case.hidden),
        *(NUMBERS[case.activation], NUMBERS[case.seed]),
    )
    done = subprocess.run(
        [str(directory / "launches"), *map(str, numbers), *case.options],
        input="".join(f"{name} {' '.join(map(str, e.parameter_bytes))}\n" for name, e in kernels.items()),
        capture_output=True,
        text=True,
        check=True,
    )
    return parse(done.stdout.splitlines())


def variant(kernel: str) -> str:
    """The variant of a kernel, or its name where it has no loop over time."""
    if "sequence_kernel" in kernel:
        return identity(kernel).variant
    return next(name for name in ("stepwise", "clear_ended", "copy_seed_to_last") if name in kernel)


def translated(launch: Launch, text: str) -> tuple[str, int]:
    """The kernel in words that the verifier knows, and the blocks of its clusters."""
    if variant(launch.kernel) == "persistent":
        blocks = int.from_bytes(launch.parameters[1][:4], "little")  # the first member of Team
        return cuda_ptx.with_mbarriers(text, blocks), blocks
    if variant(launch.kernel) == "cluster":
        return cuda_ptx.with_shared_windows(text), launch.cluster
    return text, launch.cluster


def request(launch: Launch, cluster: int) -> dict[str, Any]:
    """sentryward's input: tensors as objects of which no two overlap, integers as they are."""
    declarations, arguments, arrays = [], [], []
    for n, parameter in enumerate(launch.parameters):
        for offset in range(0, len(parameter), 8):
            word = parameter[offset : offset + 8]
            value = int.from_bytes(word, "little")
            field = {"parameter": n, "offset": offset}
            if value in launch.objects:
                name, integers = launch.objects[value]
                declarations.append({**field, "type": "pointer", "space": "global", "object": name})
                if integers:
                    arrays.append({**field, "element_type": "s64", "shapes": [[i] for i in integers]})
            else:
                arguments.append({**field, "type": f"u{8 * len(word)}", "value": value})
    return {
        "schema": "spverify.kernel-input/v1",
        "entry": launch.kernel,
        "launch": {
            "grid_dim": list(launch.grid),
            "block_dim": [launch.threads, 1, 1],
            "cluster_dim": [cluster, 1, 1],
            "dynamic_shared_bytes": launch.shared_bytes,
        },
        "declarations": declarations,
        "arguments": arguments,
        **({"shape_arrays": arrays} if arrays else {}),
    }


def proven(equal: Case | None) -> str:
    """What sentryward calls a proof, without a reference and with one."""
    return "verified" if equal else "race_free"


def unchanged(text: str) -> str:
    return text


def verdict(
    launch: Launch, text: str, change: Callable[[str], str] = unchanged, equal: Case | None = None, wrong: bool = False
) -> str:
    """sentryward's result, and where it is not a proof what it has to say; ``equal``: with a reference to this case."""
    text, cluster = translated(launch, text)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        ptx, config = directory / "kernel.ptx", directory / "input.json"
        ptx.write_text(change(text))
        config.write_text(json.dumps(request(launch, cluster)))
        reference = cuda_reference.write(directory, (equal.time, equal.batch, equal.hidden), wrong) if equal else []
        done = subprocess.run(
            ["sentryward", str(ptx), "--input", str(config), "--timeout", str(PATIENCE), *reference],
            env=tools(),
            capture_output=True,
            text=True,
            check=True,
        )
    report = json.loads(done.stdout)
    checks = ("synchronization", "memory", *(("equivalence",) if equal else ()))
    if report["result"] == proven(equal) and all(report["checks"][check] == "passed" for check in checks):
        return proven(equal)
    said = "; ".join(d.get("message", d["code"]) for d in report.get("diagnostics", ()))
    return f"{report['result']}: {said}"


def plants(launches_of: Callable[[Case], list[Launch]], kernels: dict[str, cuda_ptx.Entry]) -> list[Plant]:
    """Every barrier of one kernel of each variant left out, an mbarrier's wait, and one for copies a step too late."""

    def drop(pattern: Any, nth: int, instead: str = "") -> Callable[[str], str]:
        return lambda text: cuda_ptx.without(pattern, nth, text, instead)

    found = []
    for case in PLANTED:
        kernel = launches_of(case)[-1].kernel
        for n in range(cuda_ptx.count(cuda_ptx.BARRIER, kernels[kernel].text)):
            # with_mbarriers puts a cluster's barrier of its own before all others.
            nth = n + (case.variant == "persistent")
            found.append(Plant(f"barrier {n + 1} left out", case, drop(cuda_ptx.BARRIER, nth)))
        if case.variant == "persistent":
            found.append(Plant("flags not waited for", case, drop(cuda_ptx.WAIT, 0)))
    late = "cp.async.wait_group 3;"
    found.append(Plant("copies waited for too late", Case("resident", 5, 1, 1, 32), drop(cuda_ptx.COPIES, 0, late)))
    return found


def row(case: Case) -> tuple[Any, ...]:
    shape = f"T={case.time} B={case.batch} G={case.groups} H={case.hidden}"
    return case.variant, case.activation, case.seed, " ".join(case.options) or None, shape


def main(arguments: Sequence[str] | None = None) -> int:
    """0, or 1 where a launch is not proven, or where it is with a mistake in it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cuda_verify", description=__doc__)
    parser.parse_args(arguments)
    require("verify-cuda", "nvcc", "sentryward")
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        directory = Path(name)
        kernels = build(directory)

        def launches_of(case: Case) -> list[Launch]:
            return launches(directory, kernels, case)

        def timed(case: Case, launch: Launch, *how: Any) -> tuple[Any, ...]:
            begun = time.monotonic()
            result = verdict(launch, kernels[launch.kernel].text, *how)
            blocks = launch.grid[0] * launch.grid[1] * launch.grid[2]
            return *row(case), f"{blocks} x {launch.threads}", result, time.monotonic() - begun

        def start(case: Case, launch: Launch, *how: Any) -> Future[tuple[Any, ...]]:
            return pool.submit(timed, case, launch, *how)

        proofs = [start(case, launch) for case in CASES for launch in launches_of(case)]
        equals = [start(case, launches_of(case)[-1], unchanged, case) for case in EQUAL]
        planted = [(p.what, start(p.case, launches_of(p.case)[-1], p.change)) for p in plants(launches_of, kernels)]
        other = EQUAL[0]
        planted.append(("another reference", start(other, launches_of(other)[-1], unchanged, other, True)))
        found = [("free of races", *job.result()) for job in proofs] + [("equal", *job.result()) for job in equals]
        planted_found = [(what, *job.result()) for what, job in planted]
    columns = ("variant", "epilogue", "seed", "options", "shape", "blocks x threads", "result", "seconds")
    for first, lines in (("to be proven", found), ("planted", planted_found)):
        print(tabulate(lines, (first, *columns), "github", floatfmt=".0f", missingval="–"), end="\n\n")
    wrong = [line for line in found if line[-2] not in ("race_free", "verified")]
    # Each of these is a finding, or no proof; what could not be read or was not done in time is neither.
    missed = [line for line in planted_found if not line[-2].startswith(FINDINGS)]
    for line in wrong:
        print("not proven:", *line)
    for line in missed:
        print("not found:", *line)
    print(f"{len(found)} proofs, {len(planted_found)} planted mistakes, {time.monotonic() - started:.0f} s")
    return 1 if wrong or missed else 0


if __name__ == "__main__":
    sys.exit(main())
