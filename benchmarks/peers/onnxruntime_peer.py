"""ONNX Runtime's CPU provider; forward only. Weights are constants of the session, so their packing is paid once."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort

from benchmarks.grid import FORWARD, Shape
from benchmarks.peers.onnx_model import onnx_model
from benchmarks.peers.peer import Contestant, Problem


class OnnxRuntimePeer:
    name = "ONNX Runtime"

    def version(self) -> str:
        return ort.__version__

    def supports(self, shape: Shape, mode: str) -> bool:
        return mode == FORWARD and shape.dtype == "float32"

    def prepare(self, problem: Problem) -> Contestant:
        options = ort.SessionOptions()
        options.intra_op_num_threads = problem.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        session = ort.InferenceSession(onnx_model(problem), options, providers=["CPUExecutionProvider"])
        shape = problem.shape
        y = np.empty((shape.time, shape.batch, shape.directions * shape.hidden_size), np.float32)
        # Bound once: no copies, and no allocation of the output.
        binding = session.io_binding()
        binding.bind_input("x", "cpu", 0, np.float32, problem.x.shape, problem.x.ctypes.data)
        binding.bind_output("y", "cpu", 0, np.float32, y.shape, y.ctypes.data)
        return Contestant(lambda: session.run_with_iobinding(binding), lambda _: [y])


def make() -> OnnxRuntimePeer:
    return OnnxRuntimePeer()
