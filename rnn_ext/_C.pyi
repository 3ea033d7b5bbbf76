"""The compiled module: csrc/module.cpp."""

from typing import Any

def build_info() -> dict[str, Any]: ...
def cpu_capability() -> dict[str, Any]: ...
def has_gemm(dtype: str) -> bool: ...
def tf32_is_allowed() -> bool: ...
def cpu_plan(
    time: int, batch: int, groups: int, hidden: int, dtype: str, threads: int, features: int = 0
) -> dict[str, Any]: ...
def cuda_plan(
    time: int,
    batch: int,
    groups: int,
    hidden: int,
    dtype: str,
    capability: int,
    multiprocessors: int,
    shared_bytes: int,
) -> dict[str, Any]: ...
