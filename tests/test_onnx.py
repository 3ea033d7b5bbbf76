"""Exported models in ONNX Runtime, beside the module: one standard RNN operator a layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn.utils.rnn import pack_sequence

import rnn_ext
from rnn_ext.onnx import translation_table

T, B = Dim("T"), Dim("B")
SIZES = ((5, 3), (9, 1), (1, 4), (33, 20))


def export(model: nn.Module, arguments: tuple[Any, ...], shapes: Any, path: Path) -> onnx.ModelProto:
    """Writes the model to ``path`` and returns what stands there."""
    program = torch.onnx.export(
        model.eval(),
        arguments,
        dynamo=True,
        dynamic_shapes=shapes,
        custom_translation_table=translation_table(),
        verbose=False,
    )
    assert program is not None
    program.save(str(path))
    written = onnx.load(path)
    onnx.checker.check_model(written, full_check=True)
    return written


def assert_runtime_agrees(path: Path, model: nn.Module, *arguments: Tensor) -> None:
    session = onnxruntime.InferenceSession(str(path))
    fed = {i.name: a.numpy() for i, a in zip(session.get_inputs(), arguments, strict=True)}
    with torch.no_grad():
        expected = model(*arguments)
    torch.testing.assert_close(tuple(torch.from_numpy(y) for y in session.run(None, fed)), tuple(expected))


def layers(written: onnx.ModelProto) -> list[dict[str, Any]]:
    """What each RNN operator is told."""
    return [
        {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute if a.name != "layout"}
        for node in written.graph.node
        if node.op_type == "RNN" and node.domain == ""
    ]


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_modules(bidirectional: bool, bias: bool, nonlinearity: str, tmp_path: Path) -> None:
    # Dropout is off in eval(), and leaves no trace.
    model = rnn_ext.RNN(11, 7, 2, nonlinearity, bias, dropout=0.5, bidirectional=bidirectional)
    directions, path = 2 if bidirectional else 1, tmp_path / "rnn.onnx"
    example = torch.randn(5, 3, 11), torch.randn(2 * directions, 3, 7)
    written = export(model, example, ({0: T, 1: B}, {1: B}), path)
    expected = {
        "hidden_size": 7,
        "activations": [{"tanh": b"Tanh", "relu": b"Relu"}[nonlinearity]] * directions,
        "direction": b"bidirectional" if bidirectional else b"forward",
    }
    assert layers(written) == [expected] * 2
    # The projection is the operator's own, so no GEMM stands beside it.
    assert {node.op_type for node in written.graph.node} <= {"RNN", "Transpose", "Reshape", "Slice", "Concat"}
    for time, batch in SIZES:
        x, hx = torch.randn(time, batch, 11), torch.randn(2 * directions, batch, 7)
        assert_runtime_agrees(path, model, x, hx)


def test_batch_first_without_initial_state(tmp_path: Path) -> None:
    model, path = rnn_ext.RNN(11, 7, batch_first=True, bidirectional=True), tmp_path / "rnn.onnx"
    assert len(layers(export(model, (torch.randn(3, 5, 11),), ({0: B, 1: T},), path))) == 1
    for time, batch in SIZES:
        assert_runtime_agrees(path, model, torch.randn(batch, time, 11))


@pytest.mark.parametrize("bidirectional", [False, True])
def test_sequence_lens(bidirectional: bool, tmp_path: Path) -> None:
    class Ragged(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = rnn_ext.RNN(11, 7, 2, bidirectional=bidirectional)

        def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
            weights = self.rnn._weights()
            return rnn_ext.functional.rnn(x, weights, bidirectional=bidirectional, lengths=lengths)

    model, path = Ragged(), tmp_path / "rnn.onnx"
    example = torch.randn(5, 3, 11), torch.tensor([3, 5, 2])
    written = export(model, example, ({0: T, 1: B}, {0: B}), path)
    assert all(node.input[4] for node in written.graph.node if node.op_type == "RNN")
    for time, batch in SIZES:
        lengths = torch.randint(1, time + 1, (batch,))
        assert_runtime_agrees(path, model, torch.randn(time, batch, 11), lengths)


def test_an_exported_program(tmp_path: Path) -> None:
    model, path = rnn_ext.RNN(11, 7).eval(), tmp_path / "rnn.onnx"
    program = torch.export.export(model, (torch.randn(5, 3, 11),), dynamic_shapes=({0: T, 1: B},))
    torch.onnx.export(program, f=path, custom_translation_table=translation_table(), verbose=False)
    assert len(layers(onnx.load(path))) == 1
    assert_runtime_agrees(path, model, torch.randn(8, 2, 11))


def test_a_cell_needs_no_table(tmp_path: Path) -> None:
    cell, path = rnn_ext.RNNCell(11, 7).eval(), tmp_path / "cell.onnx"
    torch.onnx.export(cell, (torch.randn(3, 11), torch.randn(3, 7)), path, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(str(path))
    x, h = torch.randn(3, 11), torch.randn(3, 7)
    fed = {i.name: a.numpy() for i, a in zip(session.get_inputs(), (x, h), strict=True)}
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(session.run(None, fed)[0]), cell(x, h))


class Resets(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = rnn_ext.RNN(11, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(x, reset=x[..., 0] > 0)[0]


NO_LEAK = "ONNX's RNN has no states that leak; set the module's zoneout to 0, and its alpha to 1"
PACKED = pack_sequence([torch.randn(5, 11), torch.randn(2, 11)])


@pytest.mark.parametrize(
    ("model", "x", "cause"),
    [
        (rnn_ext.RNN(11, 7), PACKED, "ONNX has no packed sequences; run the padded batch with lengths instead"),
        (rnn_ext.RNN(11, 7, zoneout=0.5), torch.randn(5, 2, 11), NO_LEAK),
        (rnn_ext.RNN(11, 7, alpha=0.5), torch.randn(5, 2, 11), NO_LEAK),
        (Resets(), torch.randn(5, 2, 11), "ONNX's RNN has no resets; export the model for one episode at a time"),
    ],
)
def test_what_onnx_does_not_have_is_refused(model: nn.Module, x: Any, cause: str, tmp_path: Path) -> None:
    with pytest.raises(torch.onnx.errors.OnnxExporterError) as failure:
        export(model, (x,), None, tmp_path / "rnn.onnx")
    assert cause in causes(failure.value)


def test_recurrent_dropout_is_refused(tmp_path: Path) -> None:
    model, x = rnn_ext.RNN(11, 7, recurrent_dropout=0.5), torch.randn(5, 2, 11)
    assert len(layers(export(model, (x,), None, tmp_path / "rnn.onnx"))) == 1  # in eval mode, as modules are exported
    program = torch.export.export(model.train(), (x,))
    with pytest.raises(torch.onnx.errors.OnnxExporterError) as failure:
        torch.onnx.export(program, custom_translation_table=translation_table(), dynamo=True, verbose=False)
    assert "ONNX's RNN has no recurrent dropout; export the model in eval mode" in causes(failure.value)


def causes(error: BaseException | None) -> list[str]:
    found = []
    while error is not None:
        found.append(str(error))
        error = error.__cause__
    return found
