"""What was built, what this machine will use, and what a call would get."""

from __future__ import annotations

from typing import Any

import torch

from rnn_ext import _C


def build_info() -> dict[str, Any]:
    """What this installation of rnn_ext contains and what it will use here.

    Returns:
        A dict of strings, numbers and lists: the compiler, whether CUDA kernels were built, the instruction sets
        compiled and runnable, the dtypes that have CPU kernels, the instruction set in use (the environment variable
        RNN_EXT_CPU_ISA forces one), cache sizes in bytes, PyTorch's version and number of threads.

    Raises:
        ValueError: RNN_EXT_CPU_ISA names an instruction set that this machine does not run.
    """
    return {
        **_C.build_info(),
        **_C.cpu_capability(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


def explain(
    time: int,
    batch: int,
    hidden_size: int,
    *,
    groups: int = 1,
    dtype: torch.dtype = torch.float32,
    threads: int | None = None,
) -> str:
    """Which kernel, tiling and thread split a recurrence on the CPU would get, and why.

    Args:
        time: T, the number of steps.
        batch: B, the number of sequences.
        hidden_size: H.
        groups: G, 2 for a bidirectional layer.
        dtype: one that has a CPU kernel (``build_info()["cpu_dtypes"]``).
        threads: at most how many; default ``torch.get_num_threads()``.

    Returns:
        A few lines of text.

    Raises:
        ValueError: a size that is negative, no thread, or a dtype without a kernel.
    """
    for name, value in (("time", time), ("batch", batch), ("hidden_size", hidden_size), ("groups", groups)):
        if value < 0:
            raise ValueError(f"{name} must not be negative, got {value}")
    names = _C.build_info()["cpu_dtypes"]
    if str(dtype).removeprefix("torch.") not in names:
        raise ValueError(f"dtype must be one with a CPU kernel ({', '.join(names)}), got {dtype}")
    threads = torch.get_num_threads() if threads is None else threads
    if threads < 1:
        raise ValueError(f"threads must be positive, got {threads}")
    plan = _C.cpu_plan(time, batch, groups, hidden_size, str(dtype).removeprefix("torch."), threads)
    workers = plan["row_workers"] * plan["column_workers"]
    return (
        f"recurrence T={time} B={batch} G={groups} H={hidden_size} {dtype}: {plan['isa']} kernel\n"
        f"  threads   {workers} of {threads}: {plan['row_workers']} over rows x {plan['column_workers']} over columns\n"
        f"  panels    {plan['panels']} of the columns of W, {plan['chains']} chain(s) of sums over k\n"
        f"  workspace {plan['workspace_bytes'] / 2**20:.2f} MiB\n"
        f"  estimate  {plan['estimated_cycles'] / max(1, time):.0f} cycles a step\n"
        f"  because   {plan['reason']}"
    )
