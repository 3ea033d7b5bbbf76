"""What people do with modules besides calling them, each time beside torch.nn's own."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import rnn_ext


def pair(*args: Any, **kwargs: Any) -> tuple[rnn_ext.RNN, nn.RNN]:
    theirs = nn.RNN(*args, **kwargs)
    ours = rnn_ext.RNN(*args, **kwargs)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def assert_same(ours: nn.Module, theirs: nn.Module, x: Tensor | None = None) -> None:
    x = torch.randn(5, 2, 3, dtype=next(theirs.parameters()).dtype) if x is None else x
    torch.testing.assert_close(ours(x), theirs(x))


def assert_caches_follow(module: rnn_ext.RNN) -> None:
    module(torch.randn(2, 1, 3, dtype=module.weight_hh_l0.dtype))
    assert module._flat_weights_names == ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"]
    assert all(w is getattr(module, n) for w, n in zip(module._flat_weights, module._flat_weights_names, strict=True))
    assert all(a is b for a, b in zip(module.all_weights[0], module._flat_weights, strict=True))


def test_class_relations() -> None:
    assert isinstance(rnn_ext.RNN(3, 4), nn.RNNBase)
    assert not isinstance(rnn_ext.RNN(3, 4), nn.RNN)
    assert isinstance(rnn_ext.RNNCell(3, 4), nn.RNNCell)


@pytest.mark.parametrize("way", ["pickle", "deepcopy", "torch.save"])
def test_copies(way: str) -> None:
    ours, theirs = pair(3, 4, 2, bidirectional=True)
    ours(torch.randn(5, 2, 3))
    if way == "pickle":
        copied = pickle.loads(pickle.dumps(ours))
    elif way == "deepcopy":
        copied = copy.deepcopy(ours)
    else:
        buffer = io.BytesIO()
        torch.save(ours, buffer)
        buffer.seek(0)
        copied = torch.load(buffer, weights_only=False)
    assert type(copied) is rnn_ext.RNN
    assert copied.weight_hh_l0 is not ours.weight_hh_l0
    assert_same(copied, theirs)


def test_old_checkpoints() -> None:
    ours, theirs = pair(3, 4)
    state = ours.__getstate__()
    assert "_flat_weight_refs" not in state
    del state["proj_size"]
    state["_all_weights"] = [[torch.zeros(1)]]  # tensors, before they were names
    old = rnn_ext.RNN.__new__(rnn_ext.RNN)
    old.__setstate__(state)
    assert old.proj_size == 0
    assert_same(old, theirs)
    assert_caches_follow(old)


def test_caches_follow_every_change() -> None:
    ours, theirs = pair(3, 4)
    replacement = nn.Parameter(torch.randn(4, 4))
    for module in (ours, theirs):
        module.weight_hh_l0 = replacement
    assert_same(ours, theirs)
    assert_caches_follow(ours)
    assert_same(ours.double(), theirs.double())
    assert_caches_follow(ours)
    fresh = {k: torch.randn_like(v) for k, v in theirs.state_dict().items()}
    for module in (ours, theirs):
        module.load_state_dict(fresh, assign=True)
    assert_same(ours, theirs)
    assert_caches_follow(ours)


def test_functional_call_uses_the_weights_it_is_given() -> None:
    ours, theirs = pair(3, 4)
    other = {n: torch.randn_like(p) for n, p in ours.named_parameters()}
    x = torch.randn(5, 2, 3)
    torch.testing.assert_close(torch.func.functional_call(ours, other, x), torch.func.functional_call(theirs, other, x))
    assert_same(ours, theirs, x)


def test_tied_weights() -> None:
    ours, theirs = pair(4, 4)
    for module in (ours, theirs):
        module.weight_ih_l0 = module.weight_hh_l0
    x = torch.randn(5, 2, 4)
    assert_same(ours, theirs, x)
    for module in (ours, theirs):
        module(x)[0].sum().backward()
    torch.testing.assert_close(ours.weight_hh_l0.grad, theirs.weight_hh_l0.grad)


@pytest.mark.parametrize("kind", ["weight_norm", "orthogonal", "spectral_norm", "prune"])
def test_reparametrized_weights(kind: str) -> None:
    ours, theirs = pair(3, 4)
    for module in (ours, theirs):
        torch.manual_seed(0)
        if kind == "prune":
            prune.l1_unstructured(module, "weight_hh_l0", amount=0.5)
        else:
            getattr(parametrizations, kind)(module, "weight_hh_l0")
    ours.load_state_dict(theirs.state_dict())
    ours.eval(), theirs.eval()
    assert_same(ours, theirs)
    x = torch.randn(5, 2, 3)
    grads = []
    for module in (ours, theirs):
        module(x)[0].sum().backward()
        grads.append([p.grad for p in module.parameters()])
    torch.testing.assert_close(*grads)


def test_meta_and_empty() -> None:
    module = rnn_ext.RNN(3, 4, 2, bidirectional=True, device="meta")
    output, h_n = module(torch.randn(5, 2, 3, device="meta"))
    assert output.shape == (5, 2, 8)
    assert h_n.shape == (4, 2, 4)
    _, theirs = pair(3, 4, 2, bidirectional=True)
    filled = module.to_empty(device="cpu")
    filled.load_state_dict(theirs.state_dict())
    assert_same(filled, theirs)


def test_share_memory_and_containers() -> None:
    ours, theirs = pair(3, 4)
    assert_same(ours.share_memory(), theirs)
    assert nn.Sequential(ours)(torch.randn(5, 2, 3))[0].shape == (5, 2, 4)


def test_checkpointing() -> None:
    ours, theirs = pair(3, 4)
    x = torch.randn(5, 2, 3, requires_grad=True)
    torch.utils.checkpoint.checkpoint(ours, x, use_reentrant=False)[0].sum().backward()
    theirs(x.detach())[0].sum().backward()
    torch.testing.assert_close(ours.weight_hh_l0.grad, theirs.weight_hh_l0.grad)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("packed", [False, True])
def test_trace_save_and_load(packed: bool) -> None:
    ours, theirs = pair(3, 4, 2)

    class Model(nn.Module):
        def __init__(self, rnn: nn.Module) -> None:
            super().__init__()
            self.rnn = rnn

        def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
            if not packed:
                return self.rnn(x)[0]
            return pad_packed_sequence(self.rnn(pack_padded_sequence(x, lengths))[0])[0]

    x, lengths = torch.randn(5, 2, 3), torch.tensor([5, 3])
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.trace(Model(ours), (x, lengths)), buffer)
    buffer.seek(0)
    loaded = torch.jit.load(buffer)
    torch.testing.assert_close(loaded(x, lengths), Model(theirs)(x, lengths))
    loaded(x, lengths).sum().backward()
    Model(theirs)(x, lengths).sum().backward()
    torch.testing.assert_close(dict(loaded.named_parameters())["rnn.weight_hh_l0"].grad, theirs.weight_hh_l0.grad)


class _Squares(torch.utils.data.Dataset[Tensor]):
    """Runs the module in the worker."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Tensor:
        with torch.no_grad():
            return self.module(torch.full((20, 3), float(index)))[0]


def test_data_loader_workers_after_use() -> None:
    torch.set_num_threads(2)
    ours, _ = pair(3, 300)
    ours(torch.randn(50, 1, 3))  # threads exist before the fork
    loader = torch.utils.data.DataLoader(_Squares(ours), num_workers=2, multiprocessing_context="fork", timeout=60)
    for index, output in enumerate(loader):
        with torch.no_grad():
            expected = ours(torch.full((20, 3), float(index)))[0]
        torch.testing.assert_close(output[0], expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("time", [1, 5])
@pytest.mark.filterwarnings("ignore:rnn_ext has no kernel")
def test_gradients_share_no_memory(time: int, bidirectional: bool, dtype: torch.dtype) -> None:
    module = rnn_ext.RNN(3, 4, 2, bidirectional=bidirectional, dtype=dtype)
    oracle = nn.RNN(3, 4, 2, bidirectional=bidirectional, dtype=dtype)
    oracle.load_state_dict(module.state_dict())
    x = torch.randn(time, 2, 3, dtype=dtype)
    for model in (module, oracle):
        if model is oracle and dtype.is_complex:
            # nn.RNN refuses complex numbers: twice the gradient of one pass is what two must give.
            once = rnn_ext.RNN(3, 4, 2, bidirectional=bidirectional, dtype=dtype)
            once.load_state_dict(module.state_dict())
            (2 * once(x)[0].abs().sum()).backward()
            oracle.load_state_dict(once.state_dict())
            for p, q in zip(oracle.parameters(), once.parameters(), strict=True):
                p.grad = q.grad
            continue
        for _ in range(2):
            model(x)[0].abs().sum().backward()
    gradients = [p.grad for p in module.parameters()]
    assert len({g.data_ptr() for g in gradients if g is not None}) == len(gradients)
    torch.testing.assert_close(gradients, [p.grad for p in oracle.parameters()])
    # In place on one, as clipping does, and the others stay.
    norms = [torch.nn.utils.clip_grad_norm_(m.parameters(), 0.1) for m in (module, oracle)]
    torch.testing.assert_close(*norms)
    torch.testing.assert_close([p.grad for p in module.parameters()], [p.grad for p in oracle.parameters()])
