"""ONNX: each layer of an exported model becomes one standard ``RNN`` operator.

``torch.onnx.export`` works on an exported program, where a layer is one node, ``rnn_ext::layer`` (``layer.py``). Here
is what that node is in ONNX. Needs the packages onnx and onnxscript, as ``torch.onnx.export`` itself does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

__all__ = ["translation_table"]

_DIRECTIONS = {(1,): "forward", (-1,): "reverse", (1, -1): "bidirectional"}
_ACTIVATIONS = {"tanh": "Tanh", "relu": "Relu"}


def translation_table() -> dict[Callable[..., Any], Callable[..., Any]]:
    """The argument ``custom_translation_table`` of ``torch.onnx.export(..., dynamo=True)`` for models with rnn_ext.RNN.

    Padded sequences, with or without lengths, of any number of steps and rows (``dynamic_shapes``), one direction or
    two, tanh or ReLU. ONNX has no packed sequences: a model that packs must use ``lengths`` instead.

    Returns:
        A dict from operators of PyTorch to functions that build ONNX nodes.

    Raises:
        ImportError: onnxscript is not installed.
        ValueError: in the export, of a model that runs packed sequences, resets, recurrent dropout, zoneout or
            ``alpha``.

    Example:
        >>> example = (torch.randn(5, 3, 10),)
        >>> program = torch.onnx.export(
        ...     rnn_ext.RNN(10, 20), example, dynamo=True, custom_translation_table=translation_table(), verbose=False
        ... )
        >>> [node.op_type for node in program.model.graph if node.op_type == "RNN"]
        ['RNN']
    """
    from onnx import TensorProto
    from onnxscript import opset18

    # Its annotations know nothing of the lists that it takes for constant tensors.
    op: Any = opset18

    # Unannotated are the tensors: they may be of any type.
    def layer(  # type: ignore[no-untyped-def]
        x,
        h0,
        w_ih,
        w_hh,
        b_ih,
        b_hh,
        batch_sizes,
        lengths,
        reset,
        mask,
        leak,
        nonlinearity: str,
        direction: Sequence[int],
    ):
        if batch_sizes is not None:
            raise ValueError("ONNX has no packed sequences; run the padded batch with lengths instead")
        if reset is not None:
            raise ValueError("ONNX's RNN has no resets; export the model for one episode at a time")
        if mask is not None:
            raise ValueError("ONNX's RNN has no recurrent dropout; export the model in eval mode")
        if leak is not None:
            raise ValueError("ONNX's RNN has no states that leak; set the module's zoneout to 0, and its alpha to 1")
        groups, hidden = len(direction), w_hh.shape[1]
        # ONNX stacks directions where ours stand one below the other: (G*H, ...) is its (G, H, ...).
        bias = None
        if b_ih is not None:
            bias = op.Concat(op.Reshape(b_ih, [groups, hidden]), op.Reshape(b_hh, [groups, hidden]), axis=1)
        h, h_n = op.RNN(
            x,
            op.Reshape(w_ih, [groups, hidden, -1]),
            op.Reshape(w_hh, [groups, hidden, hidden]),
            bias,
            None if lengths is None else op.Cast(lengths, to=TensorProto.INT32),
            h0,
            activations=[_ACTIVATIONS[nonlinearity]] * groups,
            direction=_DIRECTIONS[tuple(direction)],
            hidden_size=hidden,
        )
        # Its output is (T, G, B, H), ours (T, B, G*H).
        return op.Reshape(op.Transpose(h, perm=[0, 2, 1, 3]), [0, 0, groups * hidden]), h_n

    return {torch.ops.rnn_ext.layer.default: layer}
