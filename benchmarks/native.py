"""C++ helpers of the benchmarks, compiled on first use into build/benchmarks/."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "benchmarks"


class CannotBuild(Exception):
    """No compiler, or it failed; the message is one line."""


def _processor() -> str:
    """What -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line for line in lines if line.lower().startswith(("flags", "features")))
    except (OSError, StopIteration):
        return platform.processor()


def load(source: Path, *flags: str) -> ctypes.CDLL:
    """Compiles a source into a shared library, unless that was done before with the same flags, and loads it.

    Raises:
        CannotBuild: there is no compiler, or it does not accept the source.
    """
    compiler = shutil.which(os.environ.get("CXX", "c++").split()[0]) or shutil.which("g++")
    if compiler is None:
        raise CannotBuild("no C++ compiler on PATH")
    command = [compiler, "-O3", "-march=native", "-std=c++17", "-fPIC", "-shared", "-pthread", "-Wno-psabi"]
    key = hashlib.sha256("\0".join([source.read_text(), *command, *flags, _processor()]).encode()).hexdigest()[:16]
    library = BUILD / f"{source.stem}-{key}.so"
    if not library.exists():
        BUILD.mkdir(parents=True, exist_ok=True)
        # Into place by renaming, so that a process beside this one never loads half a file.
        unfinished = library.with_suffix(f".{os.getpid()}.tmp")
        done = subprocess.run([*command, str(source), "-o", str(unfinished), *flags], capture_output=True, text=True)
        if done.returncode != 0:
            lines = [line for line in done.stderr.splitlines() if "error" in line] or ["unknown error"]
            raise CannotBuild(f"{Path(compiler).name} failed on {source.name}: {lines[0]}")
        unfinished.replace(library)
    return ctypes.CDLL(str(library))
