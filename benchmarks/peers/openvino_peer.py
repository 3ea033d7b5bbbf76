"""OpenVINO's CPU plugin; forward only. Weights are constants of the compiled model, so their packing is paid once."""

from __future__ import annotations

from io import BytesIO

import openvino as ov

from benchmarks.grid import FORWARD, Shape
from benchmarks.peers.onnx_model import onnx_model
from benchmarks.peers.peer import Contestant, Problem


class OpenVinoPeer:
    name = "OpenVINO"

    def __init__(self) -> None:
        self._core = ov.Core()

    def version(self) -> str:
        return ov.__version__.split("-")[0]

    def supports(self, shape: Shape, mode: str) -> bool:
        return mode == FORWARD and shape.dtype == "float32"

    def prepare(self, problem: Problem) -> Contestant:
        model = self._core.read_model(BytesIO(onnx_model(problem)))
        options = {
            "INFERENCE_NUM_THREADS": problem.threads,
            "PERFORMANCE_HINT": "LATENCY",
            # Its default is bfloat16 where the machine has it.
            "INFERENCE_PRECISION_HINT": "f32",
            # The process already has its cores (benchmarks/cores.py).
            "ENABLE_CPU_PINNING": False,
        }
        request = self._core.compile_model(model, "CPU", options).create_infer_request()
        request.set_input_tensor(ov.Tensor(problem.x, shared_memory=True))
        return Contestant(request.infer, lambda _: [request.get_output_tensor().data.copy()])


def make() -> OpenVinoPeer:
    return OpenVinoPeer()
