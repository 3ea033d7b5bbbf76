"""from_torch and to_torch: in place, parameters shared, nothing lost."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn.utils import parametrizations

import rnn_ext


class Mine(nn.RNN):
    """A user's own subclass."""


def make_model() -> nn.ModuleDict:
    return nn.ModuleDict(
        {"rnn": nn.RNN(3, 4, 2, bidirectional=True), "inner": nn.Sequential(nn.RNNCell(3, 4)), "mine": Mine(3, 4)}
    )


def test_there_and_back() -> None:
    model = make_model()
    original = copy.deepcopy(model)
    modules, parameters = list(model.modules()), list(model.parameters())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert rnn_ext.from_torch(model) is model
    assert [type(m) for m in (model["rnn"], model["inner"][0], model["mine"])] == [rnn_ext.RNN, rnn_ext.RNNCell, Mine]
    assert all(a is b for a, b in zip(model.modules(), modules, strict=True))
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    x = torch.randn(5, 2, 3)
    torch.testing.assert_close(model["rnn"](x), original["rnn"](x))
    before = model["rnn"].weight_hh_l0.detach().clone()
    model["rnn"](x)[0].sum().backward()
    optimizer.step()
    assert not torch.equal(before, model["rnn"].weight_hh_l0)
    rnn_ext.to_torch(model)
    assert type(model["rnn"]) is nn.RNN
    assert type(model["inner"][0]) is nn.RNNCell
    model.load_state_dict(original.state_dict())
    torch.testing.assert_close(model["rnn"](x), original["rnn"](x))


def test_a_bare_module_with_hooks_and_mode() -> None:
    module = nn.RNN(3, 4).eval()
    seen = []
    module.register_forward_hook(lambda *_: seen.append(1))
    assert rnn_ext.from_torch(module) is module
    module(torch.randn(5, 2, 3))
    assert seen == [1]
    assert not module.training


def test_parametrized() -> None:
    module = parametrizations.weight_norm(nn.RNN(3, 4), "weight_hh_l0")
    x = torch.randn(5, 2, 3)
    expected = module(x)
    rnn_ext.from_torch(module)
    assert isinstance(module, rnn_ext.RNN)
    torch.testing.assert_close(module(x), expected)
    rnn_ext.to_torch(module)
    assert isinstance(module, nn.RNN)
    torch.testing.assert_close(module(x), expected)
