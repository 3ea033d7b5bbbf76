"""torch.compile, torch.export, AOTInductor and TorchScript: one graph for every size, equal to eager execution."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.export import Dim
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import rnn_ext

# Different from each other and from every batch below: sizes that happen to be equal are one symbol to the compiler.
INPUT, HIDDEN = 11, 13
SIZES = ((5, 3), (7, 3), (7, 4), (9, 2), (40, 17))
T, B, N = Dim("T"), Dim("B"), Dim("N")
DYNAMIC = {
    "dense": ({0: T, 1: B},),
    "hx": ({0: T, 1: B}, {1: B}),
    "lengths": ({0: T, 1: B}, {0: B}),
    "parts": (({0: N}, {0: T}, {0: B}, {0: B}),),
}


@pytest.fixture(autouse=True)
def _forget_graphs() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def float64() -> Iterator[None]:
    """For sums of hundreds of terms that cancel: in float32 two orders of summation may differ by more than is allowed,
    on one CPU and not on another."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


class Lengths(nn.Module):
    """The functional form on a padded, ragged batch."""

    def __init__(self, rnn: rnn_ext.RNN) -> None:
        super().__init__()
        self.rnn = rnn

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        rnn = self.rnn
        return rnn_ext.functional.rnn(x, rnn._weights(), bidirectional=bool(rnn.bidirectional), lengths=lengths)


class Packed(nn.Module):
    """The module on a packed batch, which comes and goes as tensors: exported programs have no named tuples."""

    def __init__(self, rnn: rnn_ext.RNN) -> None:
        super().__init__()
        self.rnn = rnn

    def forward(self, *parts: Tensor) -> tuple[Tensor, Tensor]:
        output, h_n = self.rnn(PackedSequence(*parts))
        return output.data, h_n


def exported(kind: str, rnn: rnn_ext.RNN) -> nn.Module:
    return {"lengths": Lengths, "parts": Packed}.get(kind, lambda rnn: rnn)(rnn)


def ragged(time: int, batch: int) -> Tensor:
    lengths = torch.randint(1, time + 1, (batch,))
    lengths[-1] = time
    return lengths


def dense_arguments(time: int, batch: int, grad: bool) -> tuple[Any, ...]:
    return (torch.randn(time, batch, INPUT, requires_grad=grad),)


def hidden_arguments(time: int, batch: int, grad: bool) -> tuple[Any, ...]:
    return *dense_arguments(time, batch, grad), torch.randn(4, batch, HIDDEN, requires_grad=grad)


def packed_arguments(time: int, batch: int, grad: bool) -> tuple[Any, ...]:
    packed = pack_padded_sequence(torch.randn(time, batch, INPUT), ragged(time, batch), enforce_sorted=False)
    return (packed._replace(data=packed.data.requires_grad_(grad)),)


def length_arguments(time: int, batch: int, grad: bool) -> tuple[Any, ...]:
    return *dense_arguments(time, batch, grad), ragged(time, batch)


def part_arguments(time: int, batch: int, grad: bool) -> tuple[Any, ...]:
    return tuple(packed_arguments(time, batch, grad)[0])


ARGUMENTS = {"dense": dense_arguments, "hx": hidden_arguments, "packed": packed_arguments, "lengths": length_arguments}
EXPORTED = {"dense": dense_arguments, "hx": hidden_arguments, "lengths": length_arguments, "parts": part_arguments}


def tensors(values: Any) -> list[Tensor]:
    """The floating tensors among arguments or results."""
    found = []
    for value in values:
        value = value.data if isinstance(value, PackedSequence) else value
        if value.is_floating_point():
            found.append(value)
    return found


def gradients(module: nn.Module, function: Callable[..., Any], arguments: Any) -> tuple[list[Tensor], tuple[Any, ...]]:
    outputs = tensors(function(*arguments))
    loss = sum((o * o).sum() for o in outputs)
    return outputs, torch.autograd.grad(loss, [*tensors(arguments), *module.parameters()])


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", ARGUMENTS)
def test_one_graph_for_every_size(kind: str, training: bool) -> None:
    rnn = rnn_ext.RNN(INPUT, HIDDEN, 2, bidirectional=True)
    module = Lengths(rnn) if kind == "lengths" else rnn
    backend = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend=backend)
    graphs = []
    for size in SIZES:
        arguments = ARGUMENTS[kind](*size, training)
        with torch.set_grad_enabled(training):
            if training:
                ours, expected = (gradients(module, f, arguments) for f in (compiled, module))
            else:
                ours, expected = (tensors(f(*arguments)) for f in (compiled, module))
        torch.testing.assert_close(ours, expected)
        graphs.append(backend.frame_count)
    assert len(set(graphs)) == 1, f"graphs compiled after each of {SIZES}: {graphs}"


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_one_graph_for_a_cell(nonlinearity: str) -> None:
    cell = rnn_ext.RNNCell(INPUT, HIDDEN, nonlinearity=nonlinearity)
    backend = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(cell, fullgraph=True, dynamic=True, backend=backend)
    graphs = []
    for batch in (2, 3, 17):
        arguments = (torch.randn(batch, INPUT, requires_grad=True), torch.randn(batch, HIDDEN, requires_grad=True))
        ours, expected = (gradients(cell, lambda *a, f=f: (f(*a),), arguments) for f in (compiled, cell))
        torch.testing.assert_close(ours, expected)
        graphs.append(backend.frame_count)
    assert len(set(graphs)) == 1


def test_marked_dimensions_need_no_second_graph() -> None:
    module = rnn_ext.RNN(INPUT, HIDDEN, bidirectional=True)
    backend = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(module, fullgraph=True, backend=backend)
    for size in SIZES:
        x = torch.randn(*size, INPUT)
        for dimension in (0, 1):
            torch._dynamo.mark_dynamic(x, dimension)
        torch.testing.assert_close(compiled(x), module(x))
    assert backend.frame_count == 1


def test_inductor_trains() -> None:
    module = rnn_ext.RNN(INPUT, HIDDEN, 2, bidirectional=True)
    compiled = torch.compile(module, fullgraph=True, dynamic=True)
    for kind in ("dense", "packed"):
        arguments = ARGUMENTS[kind](7, 3, True)
        ours, expected = (gradients(module, f, arguments) for f in (compiled, module))
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("kind", EXPORTED)
def test_export_with_dynamic_sizes(kind: str, strict: bool) -> None:
    rnn = rnn_ext.RNN(INPUT, HIDDEN, 2, bidirectional=True)
    module = exported(kind, rnn)
    arguments = EXPORTED[kind](5, 3, False)
    before = [id(w) for w in rnn._flat_weights]
    program = torch.export.export(module, arguments, dynamic_shapes=DYNAMIC[kind], strict=strict)
    assert [id(w) for w in rnn._flat_weights] == before  # and not what the exporter put in their place
    assert [n.target for n in program.graph.nodes].count(torch.ops.rnn_ext.layer.default) == 2
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    decomposed = program.run_decompositions()
    targets = [n.target for n in decomposed.graph.nodes]
    assert targets.count(torch.ops.rnn_ext.recurrence.default) == 2
    assert torch.ops.rnn_ext.layer.default not in targets
    for way in (program, torch.export.load(buffer), decomposed):
        run = way.module()
        for size in (*SIZES, (1, 1), (1, 4)):
            arguments = EXPORTED[kind](*size, False)
            torch.testing.assert_close(run(*arguments), module(*arguments))


def test_an_exported_module_trains() -> None:
    module = rnn_ext.RNN(INPUT, HIDDEN, 2)
    exported = torch.export.export(module, dense_arguments(5, 3, True), dynamic_shapes=({0: T, 1: B},)).module()
    arguments = dense_arguments(9, 2, True)
    ours, expected = gradients(exported, exported, arguments), gradients(module, module, arguments)
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("kind", ["dense", "lengths", "parts"])
def test_aotinductor_package(kind: str, tmp_path: Path) -> None:
    rnn = rnn_ext.RNN(INPUT, HIDDEN, 2, "relu", bidirectional=True)
    module = exported(kind, rnn)
    program = torch.export.export(module, EXPORTED[kind](5, 3, False), dynamic_shapes=DYNAMIC[kind])
    path = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "rnn.pt2"))
    run = torch._inductor.aoti_load_package(path)
    for size in (*SIZES, (1, 1)):
        arguments = EXPORTED[kind](*size, False)
        torch.testing.assert_close(tuple(run(*arguments)), module(*arguments))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript() -> None:
    model = nn.Sequential(nn.Linear(3, 5), rnn_ext.RNN(5, 4, 2, "relu", bidirectional=True))
    with pytest.raises(TypeError, match=r"cannot compile rnn_ext.RNN; use torch.export or torch.jit.trace"):
        torch.jit.script(model)
    scripted = torch.jit.script(rnn_ext.to_torch(copy.deepcopy(model)))
    x = torch.randn(6, 2, 3)
    torch.testing.assert_close(scripted(x), model(x))
    assert type(model[1]) is rnn_ext.RNN
    cell = rnn_ext.RNNCell(3, 4)
    torch.testing.assert_close(torch.jit.script(cell)(x[0]), cell(x[0]))


def test_compiled_with_weights_of_another_dtype() -> None:
    model, x = rnn_ext.RNN(3, 4), torch.randn(5, 2, 3, dtype=torch.float64)
    weights = {name: p.double() for name, p in model.named_parameters()}
    compiled = torch.compile(lambda w, x: torch.func.functional_call(model, w, x), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(weights, x), torch.func.functional_call(model, weights, x))
    assert model(x.float())[0].dtype == torch.float32


@pytest.mark.parametrize("kind", ["dense", "lengths", "packed"])
def test_the_exported_op_keeps_its_contract(kind: str) -> None:
    (packed,) = packed_arguments(5, 3, True)
    x = packed.data if kind == "packed" else torch.randn(5, 3, INPUT, requires_grad=True)
    shapes = ((2 * HIDDEN, INPUT), (2 * HIDDEN, HIDDEN), (2 * HIDDEN,), (2 * HIDDEN,))
    weights = [torch.randn(shape, requires_grad=True) for shape in shapes]
    h0 = torch.randn(2, 3, HIDDEN, requires_grad=True)
    batch_sizes = packed.batch_sizes if kind == "packed" else None
    lengths = ragged(5, 3) if kind == "lengths" else None
    reset = torch.rand(5, 3) < 0.5 if kind == "lengths" else None
    mask = torch.randn(2, 3, HIDDEN) if kind == "packed" else None
    leak = torch.rand(*x.shape[:-1], 2 * HIDDEN) if kind != "dense" else None
    arguments = (x, h0, *weights, batch_sizes, lengths, reset, mask, leak, "tanh", (1, -1))
    torch.library.opcheck(torch.ops.rnn_ext.layer.default, arguments)


@pytest.mark.parametrize("layers", [1, 2])
def test_a_module_compiles_with_lengths_in_one_graph(layers: int) -> None:
    module = rnn_ext.RNN(3, 4, layers)
    compiled = torch.compile(lambda x, lengths: module(x, lengths=lengths), backend="aot_eager", fullgraph=True)
    x = torch.randn(5, 3, 3)
    for lengths in (torch.tensor([2, 4, 1]), torch.tensor([5, 5, 3])):
        torch.testing.assert_close(compiled(x, lengths), module(x, lengths=lengths))
    with pytest.raises(RuntimeError, match="lengths must be from 1 to the padded length 5, got 6"):
        compiled(x, torch.tensor([6, 1, 1]))
