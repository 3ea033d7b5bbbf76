"""Builds rnn_ext: `pip install --no-build-isolation .`, or `make` for a checkout.

Metadata is in pyproject.toml; here is only the extension, and a clear word where it cannot be built.
"""

import os
import shutil
import sys
import sysconfig
from pathlib import Path

from setuptools import setup


def require(condition: object, message: str) -> None:
    """Ends the build with one sentence that names the remedy."""
    if not condition:
        sys.exit(f"rnn_ext cannot be built: {message}")


def check_tools() -> None:
    compiler = os.environ.get("CXX", "c++").split()[0]
    require(
        shutil.which(compiler) or shutil.which("g++"),
        f"no C++ compiler ({compiler}) on PATH; install one, e.g. `apt-get install g++`.",
    )
    header = Path(sysconfig.get_path("include")) / "Python.h"
    require(
        header.exists(),
        f"the Python headers ({header}) are missing; install them, e.g. `apt-get install python3-dev`.",
    )
    try:
        import torch
    except ImportError:
        require(
            False,
            "PyTorch is not importable; install it first (`pip install torch`, 2.10 or newer), then "
            "`pip install --no-build-isolation .`, so that the build sees it.",
        )
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    require(
        version >= (2, 10),
        f"PyTorch {torch.__version__} is too old; the stable ABI that rnn_ext uses needs 2.10 or newer.",
    )


# An sdist copies files and builds nothing.
if not {"sdist", "egg_info", "clean"} & set(sys.argv):
    check_tools()
    from torch.utils.cpp_extension import BuildExtension, CppExtension

    extension = CppExtension(
        "rnn_ext._C",
        # One source list for this build and CMake's.
        sources=[line for line in Path("csrc/sources.txt").read_text().split() if line],
        extra_compile_args=[
            # No ATen or c10: the oldest stable ABI that has what we call, so one binary serves all later ones.
            "-DTORCH_TARGET_VERSION=0x020a000000000000",
            "-O3",
            # Sums of products become FMAs in the vector types too, whatever -std is.
            "-ffp-contract=fast",
            # Vector arguments never cross a function that is not inlined.
            "-Wno-psabi",
            "-fvisibility=hidden",
        ],
        # setuptools rebuilds only when one of these is newer.
        depends=[str(p) for p in Path("csrc").rglob("*") if p.suffix in (".h", ".inl", ".txt")],
        extra_link_args=["-Wl,--as-needed"] if sys.platform == "linux" else [],
    )
    setup(ext_modules=[extension], cmdclass={"build_ext": BuildExtension})
else:
    setup()
