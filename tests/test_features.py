"""The README's table of features: each row tried on ``torch.nn.RNN`` and on ours, and what can be on cuDNN's op."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.export import Dim
from torch.func import functional_call, grad, jvp, vmap
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import pack_sequence
from torch.utils._python_dispatch import TorchDispatchMode

import rnn_ext
from rnn_ext.onnx import translation_table

README = Path(__file__).parent.parent / "README.md"
T, B = Dim("T"), Dim("B")

Make = Callable[..., nn.Module]
PROBES: dict[str, Callable[[Make], None]] = {}


def row(name: str) -> Callable[[Callable[[Make], None]], Callable[[Make], None]]:
    """Marks a function that raises where the feature of that row is missing."""

    def add(probe: Callable[[Make], None]) -> Callable[[Make], None]:
        PROBES[name] = probe
        return probe

    return add


def loss_of(model: nn.Module) -> Callable[[dict[str, Tensor], Tensor], Tensor]:
    return lambda weights, x: functional_call(model, weights, (x,))[0].pow(2).sum()


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in model.named_parameters()}


@row("Gradients of gradients")
def _(make: Make) -> None:
    x = torch.randn(5, 2, 3, requires_grad=True)
    (slope,) = torch.autograd.grad(make(3, 4)(x)[0].sum(), x, create_graph=True)
    assert torch.autograd.grad(slope.pow(2).sum(), x)[0].abs().max() > 0


@row("Forward mode (`torch.func.jvp`)")
def _(make: Make) -> None:
    model, x = make(3, 4), torch.randn(5, 2, 3)
    assert jvp(lambda x: model(x)[0], (x,), (x,))[1].abs().max() > 0


@row("`vmap` over samples, per-sample gradients")
def _(make: Make) -> None:
    model = make(3, 4)
    per_sample = vmap(grad(loss_of(model)), (None, 0))(weights_of(model), torch.randn(6, 5, 1, 3))
    assert per_sample["weight_hh_l0"].shape == (6, 4, 4)


@row("`vmap` over weights")
def _(make: Make) -> None:
    model = make(3, 4)
    stacked = {name: torch.stack([p, -p]) for name, p in weights_of(model).items()}
    assert vmap(loss_of(model), (0, None))(stacked, torch.randn(5, 2, 3)).shape == (2,)


@row("Backward in `eval()`")
def _(make: Make) -> None:
    model = make(3, 4).eval()
    model(torch.randn(5, 2, 3))[0].sum().backward()
    assert model.weight_hh_l0.grad.abs().max() > 0


@row("Output edited in place before backward")
def _(make: Make) -> None:
    model = make(3, 4)
    model(torch.randn(5, 2, 3))[0].mul_(2).sum().backward()
    assert model.weight_hh_l0.grad.abs().max() > 0


@row("Weights of any layout, without a copy for each call")
def _(make: Make) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = parametrizations.weight_norm(make(3, 4), "weight_hh_l0")
        model.weight_ih_l0 = nn.Parameter(torch.randn(3, 4).t())
        model(torch.randn(5, 2, 3))


@row("Dropout that follows the seed")
def _(make: Make) -> None:
    model, x, draws = make(3, 4, 2, dropout=0.5), torch.randn(5, 2, 3), []
    for _ in range(2):
        torch.manual_seed(7)
        draws.append(model(x)[0])
    assert torch.equal(*draws)


class Calls(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.counts = Counter[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


@row("Packed sequences in one kernel call")
def _(make: Make) -> None:
    model, counts = make(3, 4), []
    for time in (4, 40):
        packed = pack_sequence([torch.randn(time, 3), torch.randn(time // 2, 3)])
        with Calls() as calls, torch.no_grad():
            model(packed)
        counts.append(calls.counts)
    assert counts[0] == counts[1]


@row("`torch.compile(fullgraph=True)`")
def _(make: Make) -> None:
    torch._dynamo.reset()
    torch.compile(make(3, 4), fullgraph=True, backend="eager")(torch.randn(5, 2, 3))


@row("`torch.export` with dynamic T")
def _(make: Make) -> None:
    program = torch.export.export(make(3, 4), (torch.randn(5, 2, 3),), dynamic_shapes=({0: T, 1: B},))
    assert program.run_decompositions().module()(torch.randn(9, 3, 3))[0].shape == (9, 3, 4)


@row("ONNX operator `RNN` with dynamic T (`dynamo=True`)")
def _(make: Make) -> None:
    table, shapes = translation_table(), ({0: T, 1: B},)
    options: dict[str, Any] = {"dynamic_shapes": shapes, "custom_translation_table": table, "verbose": False}
    program = torch.onnx.export(make(3, 4).eval(), (torch.randn(5, 2, 3),), dynamo=True, **options)
    assert program is not None
    assert [node.op_type for node in program.model.graph].count("RNN") == 1
    assert not isinstance(program.model.graph.inputs[0].shape[0], int)


@row("[`lengths=`](docs/sequences.md) for a padded batch, in any order")
def _(make: Make) -> None:
    output, _ = make(3, 4)(torch.randn(5, 2, 3), lengths=torch.tensor([2, 5]))
    assert output[2:, 0].eq(0).all() and output[:, 1].ne(0).all()


@row("[Jagged nested tensors](docs/sequences.md#nested-tensors) in and out")
def _(make: Make) -> None:
    x = torch.nested.nested_tensor([torch.randn(5, 3), torch.randn(2, 3)], layout=torch.jagged)
    assert make(3, 4)(x)[0].is_nested


@row("[`reset=`](docs/sequences.md#episodes): a new episode within a sequence, as in RL rollouts")
def _(make: Make) -> None:
    make(3, 4)(torch.randn(5, 2, 3), reset=torch.rand(5, 2) < 0.5)[0].sum().backward()


@row("[`recurrent_dropout=p`](docs/training.md#recurrent-dropout): variational, in the kernel")
def _(make: Make) -> None:
    make(3, 4, recurrent_dropout=0.5)(torch.randn(5, 2, 3))[0].sum().backward()


@row("[`zoneout=p`](docs/training.md#zoneout): units that keep their state, in the kernel")
def _(make: Make) -> None:
    make(3, 4, zoneout=0.5)(torch.randn(5, 2, 3))[0].sum().backward()


@row("[`alpha=dt/tau`](docs/training.md#leaky-units): leaky units, as in models of neurons, in the kernel")
def _(make: Make) -> None:
    make(3, 4, alpha=0.2)(torch.randn(5, 2, 3))[0].sum().backward()


@row("[`return_all_layers=True`](docs/sequences.md#every-layers-states)")
def _(make: Make) -> None:
    assert len(make(3, 4, 2)(torch.randn(5, 2, 3), return_all_layers=True)[0]) == 2


@row("[`checkpoint_every=k`](docs/sequences.md#long-sequences-checkpointing): long sequences in little memory")
def _(make: Make) -> None:
    make(3, 4)(torch.randn(5, 2, 3), checkpoint_every=2)[0].sum().backward()


@row("`torch.jit.script`")
def _(make: Make) -> None:
    torch.jit.script(nn.Sequential(make(3, 4)))(torch.randn(5, 2, 3))


def table() -> dict[str, list[str]]:
    """The cells of each row, by feature."""
    section = README.read_text().split("## Beside torch.nn.RNN")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[1:]]
    return {name: rest for name, *rest in cells}


def test_every_row_is_tried() -> None:
    assert set(PROBES) <= set(table())
    assert all(len(cells) == 3 for cells in table().values())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("column", [0, 2], ids=["torch.nn.RNN", "rnn_ext.RNN"])
@pytest.mark.parametrize("name", PROBES)
def test_cell(name: str, column: int) -> None:
    claimed = re.split(r"\W", table()[name][column])[0]
    try:
        PROBES[name](nn.RNN if column == 0 else rnn_ext.RNN)
    except Exception as missing:  # whatever PyTorch raises where it cannot
        assert claimed == "no", missing
    else:
        assert claimed == "yes"


def cudnn(x: Tensor) -> Tensor:
    """The op behind ``nn.RNN`` on a GPU. What autograd and vmap say of it comes before any kernel, so shows here."""
    weights = [torch.randn(4, 3), torch.randn(4, 4), torch.randn(4), torch.randn(4)]
    hx = torch.zeros(1, 2, 4)
    return torch.ops.aten._cudnn_rnn(x, weights, 4, None, hx, None, 1, 4, 0, 1, False, 0.0, True, False, [], None)[0]


def test_cudnn_without_forward_mode() -> None:
    """The README's table says so; a PyTorch whose cuDNN has it fails here, and the table is to follow."""
    x = torch.randn(5, 2, 3)
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="forward AD with _cudnn_rnn that does not"):
        cudnn(forward_ad.make_dual(x, x))


def test_cudnn_without_vmap() -> None:
    with pytest.raises(RuntimeError, match="Batching rule not implemented for aten::_cudnn_rnn"):
        vmap(cudnn, randomness="different")(torch.randn(6, 5, 2, 3))


def test_cudnn_cells_are_tested_or_cited() -> None:
    links = dict(re.findall(r"^\[(.+)\]: (https://github.com/\S+/(?:issues|pull)/\d+)$", README.read_text(), re.M))
    for name, (_, cell, _) in table().items():
        cited = re.fullmatch(r"(?:yes|no|slow), \[(.+)\]", cell)
        assert cell == "no, tested" or (cited and cited[1] in links), name
