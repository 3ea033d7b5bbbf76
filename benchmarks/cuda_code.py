"""The CUDA kernels as nvcc made them, for the programs that read their code: cuda_cost and cuda_verify."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import NamedTuple

SOURCE = Path("csrc/cuda/recurrence.cu")


class Tile(NamedTuple):
    """One of kFloatTiles of csrc/cuda/planner.h."""

    columns: int
    outputs: int
    slices: int
    held: int

    @property
    def threads(self) -> int:
        return self.columns // self.outputs * self.slices


FLOAT_TILES = (
    *(Tile(32, 4, 8, 4), Tile(64, 4, 16, 4), Tile(128, 8, 16, 16), Tile(256, 16, 16, 32)),
    *(Tile(64, 8, 32, 28), Tile(32, 4, 32, 32)),
)
# sequence_kernel<dtype, FloatMultiply<tile, rows> or TensorMultiply<dtype, columns, warps, held>, exchange, plain, ..>.
KERNEL = re.compile(
    r"sequence_kernelI(f|N\w*?4half|N\w*?8bfloat16)E?N\w*?\d(Float|Tensor)MultiplyI(?:S\d*_|f)?Li(\d+)ELi(\d+)E(?:Li(\d+)E)?\w*?"
    r"\d(WithinBlock|WithinCluster|AcrossDevice)ELb([01])E"
)
DTYPES = {"f": "float32", "half": "float16", "bfloat16": "bfloat16"}
VARIANTS = {"WithinBlock": "resident", "WithinCluster": "cluster", "AcrossDevice": "persistent"}
# Rows that tensor cores multiply at once.
TENSOR_ROWS = 8
WARP = 32


class Identity(NamedTuple):
    """What a kernel is, from its mangled name; ``columns`` of the state are a block's, and ``rows`` of the batch.

    ``slices`` threads of a warp share each sum; with tensor cores a thread has whole ones of its warp's.
    """

    dtype: str
    variant: str
    tensor: bool
    columns: int
    threads: int
    rows: int
    plain: bool
    held: int
    slices: int


def identity(kernel: str) -> Identity:
    match = KERNEL.search(kernel)
    assert match is not None, kernel
    dtype = DTYPES[re.sub(r"^N\w*?\d(?=half|bfloat16)", "", match[1])]
    tensor, variant, plain = match[2] == "Tensor", VARIANTS[match[6]], match[7] == "1"
    first, second = int(match[3]), int(match[4])
    if tensor:
        dtype = dtype.replace("float32", "TF32")
        return Identity(dtype, variant, tensor, first, WARP * second, TENSOR_ROWS, plain, int(match[5]), 1)
    tile = FLOAT_TILES[first]
    return Identity(dtype, variant, tensor, tile.columns, tile.threads, second, plain, tile.held, tile.slices)


def tools() -> dict[str, str]:
    """The environment with this environment's programs and the disassemblers of NVIDIA's packages on PATH."""
    site = Path(sysconfig.get_path("purelib"))
    own = [str(Path(sys.executable).parent), *(str(p) for p in site.glob("nvidia/cu*/bin"))]
    return {**os.environ, "PATH": os.pathsep.join([*own, os.environ.get("PATH", "")])}


def require(target: str, *programs: str) -> None:
    """Ends this one where a program is missing; ``target`` of the Makefile would have installed it."""
    for program in programs:
        if shutil.which(program, path=tools()["PATH"]) is None:
            sys.exit(f"{program} is not on PATH; `make {target}` installs all but nvcc, which the CUDA toolkit has")


def nvcc(*arguments: str | Path) -> None:
    """With the flags of the kernels."""
    flags = ["-std=c++17", "-O3", "--expt-relaxed-constexpr", "-Icsrc"]
    subprocess.run(["nvcc", *flags, *map(str, arguments)], check=True)
