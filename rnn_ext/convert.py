"""From torch.nn's recurrent modules to rnn_ext's and back, in place and without copying a parameter."""

from __future__ import annotations

from typing import TypeVar

from torch import nn
from torch.nn.utils import parametrize

from rnn_ext.modules import OWN_OPTIONS, RNN, RNNCell

M = TypeVar("M", bound=nn.Module)

_TO_OURS: dict[type[nn.Module], type[nn.Module]] = {nn.RNN: RNN, nn.RNNCell: RNNCell}
_TO_TORCH = {ours: theirs for theirs, ours in _TO_OURS.items()}


def _convert(model: M, table: dict[type[nn.Module], type[nn.Module]]) -> M:
    for module in model.modules():
        cls = type(module)
        if cls in table:
            module.__class__ = table[cls]
        elif parametrize.is_parametrized(module):
            # parametrize gives such a module a class of its own, a subclass with a property for each weight.
            base = parametrize.type_before_parametrizations(module)
            if base in table:
                module.__class__ = type(cls.__name__, (table[base],), dict(cls.__dict__))
    return model


def from_torch(model: M) -> M:
    """Turns every ``torch.nn.RNN`` and ``torch.nn.RNNCell`` in a model into rnn_ext's, in place.

    The modules stay the same objects, with their parameters, hooks, parametrizations and training mode; optimisers
    and references to them stay valid. Subclasses written by users are left as they are.

    Args:
        model: any module, itself possibly an RNN.

    Returns:
        ``model``.
    """
    return _convert(model, _TO_OURS)


def to_torch(model: M) -> M:
    """The way back of :func:`from_torch`: every ``rnn_ext`` module of a model becomes torch.nn's, in place.

    Args:
        model: any module, itself possibly an RNN.

    Returns:
        ``model``.

    Raises:
        ValueError: a module uses what torch.nn's has no place for, recurrent dropout, zoneout or ``alpha``;
            nothing is converted then.
    """
    for name, module in model.named_modules():
        if not isinstance(module, RNN):
            continue
        for feature in OWN_OPTIONS:
            value, without = getattr(module, feature), getattr(RNN, feature)
            if value != without:
                raise ValueError(
                    f"torch.nn.RNN has no {feature.replace('_', ' ')}, but {name or 'the module'} has "
                    f"{feature}={value}; set it to {without:g} first"
                )
    return _convert(model, _TO_TORCH)
