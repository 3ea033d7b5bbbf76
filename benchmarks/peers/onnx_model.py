"""The problem as an ONNX model, for the two peers that read such: one RNN node a layer, weights as constants."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from benchmarks.peers.peer import Problem

# Old enough for both readers; nothing in these nodes has changed since.
_OPSET, _IR = 17, 8


def onnx_model(problem: Problem) -> bytes:
    """A model from ``x`` (T, B, I) to ``y`` (T, B, directions * H), zero after a sequence's end."""
    shape = problem.shape
    d, h = shape.directions, shape.hidden_size
    constants, nodes = [], []

    def constant(name: str, value: np.ndarray) -> str:
        constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    lengths = "" if problem.lengths is None else constant("lengths", problem.lengths.astype(np.int32))
    rows = constant("rows", np.array([shape.time, shape.batch, d * h], np.int64))
    source = "x"
    for layer in range(shape.num_layers):
        weights = problem.layer(layer)
        inputs = [
            source,
            constant(f"w{layer}", np.stack([w[0] for w in weights])),
            constant(f"r{layer}", np.stack([w[1] for w in weights])),
            constant(f"b{layer}", np.stack([np.concatenate(w[2:]) for w in weights])),
            lengths,
        ]
        nodes.append(
            helper.make_node(
                "RNN",
                inputs,
                [f"h{layer}"],
                hidden_size=h,
                direction="bidirectional" if d == 2 else "forward",
                activations=["Tanh"] * d,
            )
        )
        # (T, D, B, H) to (T, B, D * H): for one direction the same bytes.
        states = f"h{layer}"
        if d == 2:
            nodes.append(helper.make_node("Transpose", [states], [f"t{layer}"], perm=[0, 2, 1, 3]))
            states = f"t{layer}"
        source = "y" if layer == shape.num_layers - 1 else f"y{layer}"
        nodes.append(helper.make_node("Reshape", [states, rows], [source]))
    graph = helper.make_graph(
        nodes,
        "rnn",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(problem.x.shape))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [shape.time, shape.batch, d * h])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR)
    return model.SerializeToString()
