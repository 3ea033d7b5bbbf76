"""The same call gives the same exception and the same sentence as torch.nn's module."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import rnn_ext


def outcome(call: Any) -> tuple[type[BaseException] | None, str]:
    try:
        call()
    except Exception as error:
        return type(error), str(error)
    return None, ""


@pytest.mark.parametrize(
    "kwargs",
    [
        {"nonlinearity": "sigmoid"},
        {"proj_size": 0},
        {"proj_size": 2},
        {"input_size": 0},
        {"hidden_size": 0},
        {"hidden_size": -1},
        {"num_layers": 0},
        {"dropout": 1.5},
        {"dropout": -0.1},
        {"dropout": True},
        {"bias": 1},
        {"batch_first": 1},
        {"input_size": 3.0},
        {"input_size": np.int64(3)},
        {"hidden_size": np.int64(3)},
        {"bidirectional": 1},
    ],
    ids=str,
)
def test_constructor(kwargs: dict[str, Any]) -> None:
    full = {"input_size": 3, "hidden_size": 4, **kwargs}
    assert outcome(lambda: rnn_ext.RNN(**full)) == outcome(lambda: nn.RNN(**full))


def test_nonlinearity_given_twice() -> None:
    kind, text = outcome(lambda: rnn_ext.RNN(3, 4, 1, "tanh", nonlinearity="relu"))
    assert kind is outcome(lambda: nn.RNN(3, 4, 1, "tanh", nonlinearity="relu"))[0] is TypeError
    assert "nonlinearity" in text


def test_dropout_with_one_layer_warns() -> None:
    for cls in (rnn_ext.RNN, nn.RNN):
        with pytest.warns(UserWarning, match="dropout option adds dropout after all but last recurrent layer"):
            cls(3, 4, dropout=0.5)


X, H = torch.randn(5, 2, 3), torch.randn(2, 2, 4)
FORWARD: dict[str, tuple[Any, ...]] = {
    "1-D input": (torch.randn(3),),
    "4-D input": (torch.randn(1, 5, 2, 3),),
    "feature count": (torch.randn(5, 2, 4),),
    "dtype": (X.double(),),
    "integers": (torch.ones(5, 2, 3, dtype=torch.long),),
    "no step": (torch.randn(0, 2, 3),),
    "hx of another batch": (X, torch.randn(2, 3, 4)),
    "hx of other layers": (X, torch.randn(1, 2, 4)),
    "hx of another hidden size": (X, torch.randn(2, 2, 5)),
    "2-D hx for 3-D input": (X, torch.randn(2, 4)),
    "3-D hx for 2-D input": (X[:, 0], H),
    "unbatched feature count": (torch.randn(5, 4),),
    "packed feature count": (nn.utils.rnn.pack_padded_sequence(torch.randn(5, 2, 4), torch.tensor([5, 3])),),
    "packed hx": (nn.utils.rnn.pack_padded_sequence(X, torch.tensor([5, 3])), torch.randn(2, 3, 4)),
    "packed dtype": (nn.utils.rnn.pack_padded_sequence(X.double(), torch.tensor([5, 3])),),
}


@pytest.mark.parametrize("case", FORWARD)
@pytest.mark.parametrize("batch_first", [False, True])
def test_forward(case: str, batch_first: bool) -> None:
    args = FORWARD[case]
    if batch_first and case == "no step":
        args = (torch.randn(2, 0, 3),)
    modules = [cls(3, 4, 2, batch_first=batch_first) for cls in (rnn_ext.RNN, nn.RNN)]
    ours, theirs = (outcome(lambda m=m: m(*args)) for m in modules)
    assert ours == theirs


@pytest.mark.parametrize(
    "args",
    [
        (torch.randn(2, 2, 3),),
        (torch.tensor(1.0),),
        (torch.randn(2, 3), torch.randn(1, 2, 4)),
        (torch.randn(2, 4),),
        (torch.randn(2, 3), torch.randn(3, 4)),
    ],
    ids=lambda a: str([tuple(t.shape) for t in a]),
)
def test_cell_forward(args: tuple[Any, ...]) -> None:
    ours, theirs = (outcome(lambda c=c: c(3, 4)(*args)) for c in (rnn_ext.RNNCell, nn.RNNCell))
    assert ours == theirs
    assert ours[0] is not None


def test_cell_nonlinearity_fails_in_forward_only() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cells = [c(3, 4, nonlinearity="sin") for c in (rnn_ext.RNNCell, nn.RNNCell)]
    ours, theirs = (outcome(lambda c=c: c(torch.randn(2, 3))) for c in cells)
    assert ours == theirs
    assert ours[0] is RuntimeError
