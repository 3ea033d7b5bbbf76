"""oneDNN's ``vanilla_rnn`` primitive, called through onednn_harness.cpp."""

from __future__ import annotations

import ctypes
import importlib.metadata
import weakref
from pathlib import Path

import numpy as np

from benchmarks import native
from benchmarks.grid import Shape
from benchmarks.peers.peer import Array, Contestant, Problem, Unavailable

_SOURCE = Path(__file__).with_name("onednn_harness.cpp")
_LIBRARY, _HEADERS = "onednn-cpu-gomp", "onednn-devel-cpu-gomp"


def _find(distribution: str, name: str) -> Path:
    """A file of an installed distribution."""
    try:
        files = importlib.metadata.files(distribution) or []
    except importlib.metadata.PackageNotFoundError:
        raise Unavailable(f"no package {distribution}; pip install '.[bench]' brings it") from None
    for file in files:
        if file.as_posix().endswith(name):
            return Path(str(file.locate())).resolve()
    raise Unavailable(f"the package {distribution} has no {name}")


def _pointers(arrays: list[Array]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(arrays))(*(a.ctypes.data for a in arrays))


class OneDnnPeer:
    name = "oneDNN"

    def __init__(self) -> None:
        include = _find(_HEADERS, "oneapi/dnnl/dnnl.hpp").parents[2]
        library = _find(_LIBRARY, "libdnnl.so.3")
        try:
            native_library = native.load(
                _SOURCE, "-fopenmp", f"-I{include}", str(library), f"-Wl,-rpath,{library.parent}"
            )
        except native.CannotBuild as error:
            raise Unavailable(str(error)) from None
        self._create, self._run = native_library.onednn_create, native_library.onednn_run
        self._destroy, self._output = native_library.onednn_destroy, native_library.onednn_output
        self._implementation, self._error = native_library.onednn_implementation, native_library.onednn_error
        self._create.argtypes = [ctypes.c_int64] * 6 + [ctypes.c_int] * 2
        self._create.restype = self._output.restype = ctypes.c_void_p
        self._destroy.argtypes = self._output.argtypes = self._implementation.argtypes = [ctypes.c_void_p]
        self._destroy.restype = None
        self._run.argtypes = [ctypes.c_void_p] * 5
        self._implementation.restype = self._error.restype = ctypes.c_char_p

    def version(self) -> str:
        return importlib.metadata.version(_LIBRARY)

    def supports(self, shape: Shape, mode: str) -> bool:
        # Every sequence of a batch has the same length.
        return not shape.packed and shape.dtype == "float32"

    def prepare(self, problem: Problem) -> Contestant:
        shape = problem.shape
        size = (shape.time, shape.batch, shape.input_size, shape.hidden_size, shape.num_layers, shape.directions)
        stack = self._create(*size, problem.training, problem.threads)
        if stack is None:
            raise RuntimeError(self._message())
        # A layer's directions one after the other, as the primitive wants its weights.
        layers = [[np.stack(ws) for ws in zip(*problem.layer(i), strict=True)] for i in range(shape.num_layers)]
        weights = [w for layer in layers for w in layer]
        gradients = [np.empty_like(w) for layer in layers for w in layer[:3]] if problem.training else []
        w_pointers, g_pointers = _pointers(weights), _pointers(gradients)
        x = problem.x.ctypes.data
        g = problem.g.ctypes.data if problem.training else None
        run, message = self._run, self._message

        def call() -> None:
            if run(stack, x, w_pointers, g, g_pointers) != 0:
                raise RuntimeError(message())

        def read(_: object) -> list[Array]:
            if problem.training:
                return self._in_torch_order(gradients, shape)
            y = np.ctypeslib.as_array(
                ctypes.cast(self._output(stack), ctypes.POINTER(ctypes.c_float)),
                (shape.time, shape.batch, shape.directions * shape.hidden_size),
            )
            return [y]

        # The stack lives as long as what calls it; so do the arrays that only their addresses are passed of.
        weakref.finalize(call, self._destroy, stack)
        call.arrays = (weights, gradients, problem)  # type: ignore[attr-defined]
        return Contestant(call, read, (self._implementation(stack) or b"").decode())

    def _message(self) -> str:
        return f"oneDNN: {(self._error() or b'').decode()}"

    @staticmethod
    def _in_torch_order(gradients: list[Array], shape: Shape) -> list[Array]:
        """By layer, then direction, then weight; each of the two biases has the gradient of their sum."""
        result = []
        for layer in range(shape.num_layers):
            w_ih, w_hh, b = gradients[3 * layer : 3 * layer + 3]
            for d in range(shape.directions):
                result += [w_ih[d], w_hh[d], b[d], b[d]]
        return result


def make() -> OneDnnPeer:
    return OneDnnPeer()
