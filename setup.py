"""Builds rnn_ext: `pip install --no-build-isolation .`, or `make` for a checkout.

Metadata is in pyproject.toml; here is only the extension, and a clear word where it cannot be built.
"""

import os
import shutil
import subprocess
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


CUDA_KERNELS = Path("csrc/cuda/recurrence.cu")
# What the CUDA half adds to csrc/sources.txt; the kernels themselves are compiled below.
CUDA_SOURCES = ["csrc/cuda/op.cpp"]
EMULATOR = Path("tests/native/cuda_emulator")
# Turing to Blackwell: all that nvcc 13 knows, a binary for each generation, and PTX for what comes after.
ARCHITECTURES = "7.5;8.0;9.0;10.0;12.0+PTX"
# No ATen or c10: the oldest stable ABI that has what we call, so one binary serves all later ones.
STABLE_ABI = "-DTORCH_TARGET_VERSION=0x020a000000000000"


def cuda_build() -> str:
    """Which CUDA half is built, by the environment variable RNN_EXT_CUDA.

    "": none. "nvcc": the kernels, asked for with 1, and without being asked where PyTorch is a CUDA build and nvcc is
    on PATH. "emulated": the kernels on the emulator, in place of the CPU's, for tests.
    """
    import torch

    asked = os.environ.get("RNN_EXT_CUDA", "")
    require(
        asked in ("", "0", "1", "emulated"),
        f"RNN_EXT_CUDA is {asked!r}; it may be 1 (with CUDA kernels), 0 (without), emulated (for tests), or unset.",
    )
    nvcc = shutil.which("nvcc")
    require(
        asked != "1" or nvcc,
        "RNN_EXT_CUDA=1 asks for CUDA kernels, but nvcc is not on PATH; install the CUDA toolkit, or unset it.",
    )
    if asked == "emulated":
        return asked
    return "nvcc" if asked == "1" or (asked == "" and nvcc and torch.version.cuda) else ""


def toolkit() -> tuple[str, str]:
    """The directories of CUDA's headers and of its static runtime."""
    # What is on PATH may be a link to nvcc or a script that starts it; nvcc itself knows where it is.
    told = subprocess.run(["nvcc", "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True, check=True)
    top = next(Path(line.split("TOP=")[1].strip()).resolve() for line in told.stderr.splitlines() if "TOP=" in line)
    for library in ("lib64", "lib", "targets/x86_64-linux/lib", "targets/sbsa-linux/lib"):
        if (top / library / "libcudart_static.a").exists():
            return str(top / "include"), str(top / library)
    sys.exit(f"rnn_ext cannot be built: the CUDA toolkit in {top} has no libcudart_static.a; install CUDA's runtime.")


def kernel_command(cuda: str) -> list[str]:
    """What compiles the kernels, but for the source and the object."""
    if cuda == "emulated":
        return [
            *os.environ.get("CXX", "c++").split(),
            *("-x", "c++", "-std=c++17", "-O2", "-fPIC", "-ftls-model=initial-exec", "-Icsrc", "-Itests/native"),
        ]
    targets = []
    for name in os.environ.get("TORCH_CUDA_ARCH_LIST", ARCHITECTURES).replace(" ", ";").split(";"):
        number = name.removesuffix("+PTX").replace(".", "")
        targets.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if name.endswith("+PTX"):
            targets.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    hidden = ("-Xcompiler", "-fPIC,-fvisibility=hidden")
    return ["nvcc", "-std=c++17", "-O3", "--expt-relaxed-constexpr", *hidden, "-Icsrc", *targets]


# An sdist copies files and builds nothing.
if not {"sdist", "egg_info", "clean"} & set(sys.argv):
    check_tools()
    from torch.utils.cpp_extension import BuildExtension, CppExtension

    cuda = cuda_build()
    # One source list for this build and CMake's.
    sources = Path("csrc/sources.txt").read_text().split()
    include_dirs, defines, libraries, library_dirs = ["csrc"], [STABLE_ABI], [], []
    if cuda:
        sources += CUDA_SOURCES
        defines.append("-DRNN_EXT_WITH_CUDA")
    if cuda == "nvcc":
        headers, runtime = toolkit()
        include_dirs.append(headers)
        # Static: what loads the extension need not have the toolkit's libraries, nor a GPU.
        libraries, library_dirs = ["cudart_static", "dl", "rt", "pthread"], [runtime]
    elif cuda == "emulated":
        # And no CPU kernels but those that isa.cpp then knows.
        vectors = ("isa_avx2", "isa_avx512", "isa_avx512_bf16", "isa_amx")
        for replaced in ("op", "layer", "gradient", "ragged", *vectors):
            sources.remove(f"csrc/cpu/{replaced}.cpp")
        sources += sorted(str(p) for p in EMULATOR.glob("*.cpp"))
        include_dirs.append("tests/native")
        defines += ["-DRNN_EXT_CUDA_EMULATED", "-ftls-model=initial-exec"]
    # setuptools rebuilds only when one of these is newer.
    depends = [str(p) for p in Path("csrc").rglob("*") if p.suffix in (".h", ".inl", ".txt", ".cu", ".cuh")]
    if cuda == "emulated":
        depends += [str(p) for p in EMULATOR.glob("*.h")]

    class Build(BuildExtension):  # type: ignore[misc]
        def build_extensions(self) -> None:
            if cuda:
                built = Path(self.build_temp) / f"recurrence.{cuda}.o"
                if not built.exists() or built.stat().st_mtime < max(Path(p).stat().st_mtime for p in depends):
                    built.parent.mkdir(parents=True, exist_ok=True)
                    self.spawn([*kernel_command(cuda), "-c", str(CUDA_KERNELS), "-o", str(built)])
                self.extensions[0].extra_objects.append(str(built))
            super().build_extensions()

    extension = CppExtension(
        "rnn_ext._C",
        sources=sources,
        include_dirs=[str(Path(p).absolute()) for p in include_dirs],
        libraries=libraries,
        library_dirs=library_dirs,
        extra_compile_args=[
            *defines,
            "-O3",
            # Debug information, which Python's own flags ask for, would be most of the file and a quarter of its
            # compiler's time.
            "-g0",
            # Sums of products become FMAs in the vector types too, whatever -std is.
            "-ffp-contract=fast",
            # Vector arguments never cross a function that is not inlined.
            "-Wno-psabi",
            "-fvisibility=hidden",
        ],
        depends=depends,
        extra_link_args=["-Wl,--as-needed"] if sys.platform == "linux" else [],
    )
    setup(ext_modules=[extension], cmdclass={"build_ext": Build})
else:
    setup()
