"""What was built, what this machine will use, and what a call would get."""

from __future__ import annotations

from typing import Any

import torch

from rnn_ext import _C

# What the CUDA planner looks at: compute capability, multiprocessors, bytes of shared memory that a block may have.
_GPUS = {
    "T4": (75, 40, 65536),
    "A100": (80, 108, 166912),
    "RTX 4090": (89, 128, 101376),
    "H100": (90, 132, 232448),
    "B200": (100, 148, 232448),
}


def build_info() -> dict[str, Any]:
    """What this installation of rnn_ext contains and what it will use here.

    Returns:
        A dict of strings, numbers and lists: the compiler, whether CUDA kernels were built ("emulated" in
        tests: on the CPU, in place of its own), the instruction sets
        compiled and runnable, the dtypes that have kernels, the instruction set in use (the environment variable
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
    input_size: int | None = None,
    groups: int = 1,
    dtype: torch.dtype = torch.float32,
    threads: int | None = None,
    device: str = "cpu",
) -> str:
    """Which kernel, tiling and thread split a recurrence, or a layer of a module, would get, and why.

    Args:
        time: T, the number of steps.
        batch: B, the number of sequences.
        hidden_size: H.
        input_size: I, of a layer on the CPU with its projection; None for a recurrence alone, as
            :func:`rnn_ext.ops.recurrence` runs it, and a layer with zoneout or ``alpha``.
        groups: G, 2 for a bidirectional layer.
        dtype: one that has a kernel (``build_info()["dtypes"]``).
        threads: on the CPU, at most how many; default ``torch.get_num_threads()``.
        device: "cpu", "cuda" for the current GPU, or the name of a GPU that need not be here: "T4", "A100",
            "RTX 4090", "H100", "B200". There float32 is TF32 where ``torch.backends.cuda.matmul`` lets it be.

    Returns:
        A few lines of text.

    Raises:
        ValueError: a size that is negative or too large for CUDA, an ``input_size`` that is not positive or that is
            given for a GPU, no thread, a dtype without a kernel, or a device that is neither here nor one of those.
    """
    for name, value in (("time", time), ("batch", batch), ("hidden_size", hidden_size), ("groups", groups)):
        if value < 0:
            raise ValueError(f"{name} must not be negative, got {value}")
    if input_size is not None and (input_size < 1 or device != "cpu"):
        raise ValueError(f"input_size must be positive, and of a layer on the CPU, got {input_size} for {device}")
    names = _C.build_info()["dtypes"]
    if str(dtype).removeprefix("torch.") not in names:
        raise ValueError(f"dtype must be one with a kernel ({', '.join(names)}), got {dtype}")
    if device != "cpu":
        return _explain_cuda(time, batch, groups, hidden_size, dtype, device)
    threads = torch.get_num_threads() if threads is None else threads
    if threads < 1:
        raise ValueError(f"threads must be positive, got {threads}")
    plan = _C.cpu_plan(
        time, batch, groups, hidden_size, str(dtype).removeprefix("torch."), threads, features=input_size or 0
    )
    workers = plan["row_workers"] * plan["column_workers"]
    order = "each tile of rows through all of them" if plan["tiles_first"] else "all rows through each"
    if plan["turns_in_l1"]:
        order += ", beginning where the step before has ended"
    panels = f"{plan['panels']} of the columns of W, {order}; {plan['chains']} chain(s) of sums over k"
    what, features = "recurrence", ""
    if input_size is not None:
        how = "by PyTorch's GEMM, of all steps beforehand"
        if plan["projects"]:
            how = "by the kernel, of some steps ahead" if plan["ahead"] else "by the kernel, of a tile with its step"
        what, features = "layer", f" I={input_size}"
        panels += f"\n  input     W_ih x_t {how}"
    if plan["by_rows"]:
        panels = panels.replace(" of the columns of W,", " of W's rows, which are read as they lie if contiguous,")
    return (
        f"{what} T={time} B={batch} G={groups}{features} H={hidden_size} {dtype}: {plan['isa']} kernel\n"
        f"  threads   {workers} of {threads}: {plan['row_workers']} over rows x {plan['column_workers']} over columns\n"
        f"  panels    {panels}\n"
        f"  workspace {plan['workspace_bytes'] / 2**20:.2f} MiB\n"
        f"  estimate  {plan['estimated_cycles'] / max(1, time):.0f} cycles a step\n"
        f"  because   {plan['reason']}"
    )


def _explain_cuda(time: int, batch: int, groups: int, hidden: int, dtype: torch.dtype, device: str) -> str:
    if device == "cuda" and torch.cuda.is_available():
        found = torch.cuda.get_device_properties()
        capability = 10 * found.major + found.minor
        gpu = (
            capability,
            found.multi_processor_count,
            getattr(found, "shared_memory_per_block_optin", found.shared_memory_per_block),
        )
        device = found.name
    elif device in _GPUS:
        gpu = _GPUS[device]
    else:
        raise ValueError(f"device must be one of {', '.join(sorted(_GPUS))}, got {device!r}")
    name = "tf32" if dtype == torch.float32 and _C.tf32_is_allowed() else str(dtype).removeprefix("torch.")
    plan = _C.cuda_plan(time, batch, groups, hidden, name, *gpu)
    return (
        f"recurrence T={time} B={batch} G={groups} H={hidden} {dtype} on {device}: {plan['variant']} kernel\n"
        f"  shared    {plan['shared_bytes'] / 2**10:.1f} KiB of {gpu[2] / 2**10:.1f}\n"
        f"  workspace {plan['workspace_bytes'] / 2**10:.1f} KiB\n"
        f"  estimate  {plan['estimated_cycles']:.0f} cycles a step\n"
        f"  because   {plan['reason']}"
    )
