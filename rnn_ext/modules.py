"""RNN and RNNCell: the parameters, argument checks and text of ``torch.nn``'s, on rnn_ext's kernels.

Both build on torch's own base classes, so that construction, initialisation, ``state_dict``, old checkpoints and
``isinstance(m, nn.RNNBase)`` are torch's. ``RNN`` does not derive from ``nn.RNN``, which torch.compile refuses to
trace. Nothing numeric is here.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from rnn_ext import functional
from rnn_ext.layer import plain
from rnn_ext.nested import Jagged
from rnn_ext.packing import wrong_with

# RNN's options that nn.RNN does not have. What each is without them, the class says.
OWN_OPTIONS = ("recurrent_dropout", "zoneout", "alpha")


class RNN(nn.RNNBase):
    """A multi-layer Elman RNN, a drop-in for ``torch.nn.RNN``.

    Each layer computes ``h_t = tanh(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh)``, or with ReLU.

    Args:
        input_size: number of features of ``x``.
        hidden_size: number of features of ``h``.
        num_layers: layers, each fed with the outputs of the one before. Default: 1.
        nonlinearity: "tanh" or "relu"; may be the fourth positional argument. Default: "tanh".
        bias: whether there are ``b_ih`` and ``b_hh``. Default: True.
        batch_first: input and output are ``(batch, time, features)``. Default: False.
        dropout: in training, the probability with which an output of a layer but the last is zeroed. Default: 0.
        bidirectional: a second direction, reversed in time. Default: False.
        recurrent_dropout: by name only. In training, the probability with which a unit of the state is zeroed where
            W_hh multiplies it, drawn once for all steps of a sequence (variational dropout). Default: 0.
        zoneout: by name only. In training, the probability with which a unit of the state stays what it was before the
            step, drawn for each step; in eval mode a new state is that much of the old one. Default: 0.
        alpha: by name only. What a step renews of a state, ``h_t = (1 - alpha) * h_{t-1} + alpha * tanh(...)``: leaky
            units, for which it is ``dt / tau``. Default: 1, all of it.
        device: of the parameters.
        dtype: of the parameters.

    Shape:
        - input: ``(T, N, input_size)``, ``(N, T, input_size)`` with ``batch_first``, ``(T, input_size)``
          unbatched, a ``PackedSequence``, or a jagged nested tensor ``(N, j, input_size)``.
        - hx: ``(num_layers * directions, N, hidden_size)``, without N if unbatched; zeros if absent.
        - output: as ``input``, with ``directions * hidden_size`` features; packed or nested if the input was.
        - h_n: as ``hx``.

    Raises:
        ValueError: an unknown nonlinearity, a size that is not positive, dropout or zoneout outside [0, 1],
            ``alpha`` outside (0, 1], ``proj_size``; in forward an input that is neither 2-D nor 3-D, or of another
            dtype than the weights.
        TypeError: a size that is not an int; ``bias`` or ``batch_first`` that is not a bool.
        RuntimeError: in forward an input or ``hx`` of a wrong shape, or no time step at all.

    Example:
        >>> rnn = RNN(10, 20, num_layers=2)
        >>> output, h_n = rnn(torch.randn(5, 3, 10))
        >>> output.shape, h_n.shape
        (torch.Size([5, 3, 20]), torch.Size([2, 3, 20]))
    """

    # What old pickles of nn.RNN have as well.
    nonlinearity: str
    # What nn.RNN, converted in place or unpickled, does not have.
    recurrent_dropout: float = 0.0
    zoneout: float = 0.0
    alpha: float = 1.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if "proj_size" in kwargs:
            raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")
        if len(args) > 3:
            if "nonlinearity" in kwargs:
                raise TypeError("RNN got the argument nonlinearity twice: as its fourth, and by name")
            nonlinearity, args = args[3], args[:3] + args[4:]
        else:
            nonlinearity = kwargs.pop("nonlinearity", "tanh")
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'.")
        self.nonlinearity = nonlinearity
        recurrent_dropout = kwargs.pop("recurrent_dropout", 0.0)
        zoneout = kwargs.pop("zoneout", 0.0)
        alpha = kwargs.pop("alpha", 1.0)
        functional.check_probabilities(recurrent_dropout=recurrent_dropout, zoneout=zoneout)
        functional.check_alpha(alpha)
        super().__init__("RNN_TANH" if nonlinearity == "tanh" else "RNN_RELU", *args, **kwargs)
        self.recurrent_dropout = recurrent_dropout
        self.zoneout = zoneout
        self.alpha = float(alpha)

    def extra_repr(self) -> str:
        own = {name: getattr(self, name) for name in OWN_OPTIONS}
        return super().extra_repr() + "".join(f", {k}={v}" for k, v in own.items() if v != getattr(RNN, k))

    def _weights(self) -> list[list[Tensor]]:
        """The current weights by layer and direction, with torch's cache of them brought up to date."""
        names = self._flat_weights_names
        weights: list[Any] = [*map(self._parameters.get, names)]
        if len(weights) != len(self._flat_weights) or not all(map(operator.is_, weights, self._flat_weights)):
            # A parametrized or pruned weight is an attribute, computed or set, and not a parameter.
            weights = [getattr(self, name) if w is None else w for name, w in zip(names, weights, strict=True)]
            # What the exporter puts in the parameters' place while it records is not to be kept.
            if not torch.compiler.is_exporting():
                self._flat_weights = weights
        size = 4 if self.bias else 2
        return [weights[i : i + size] for i in range(0, len(weights), size)] if len(weights) > size else [weights]

    def __prepare_scriptable__(self) -> Any:
        # What torch.jit.script asks first of every module. It compiles Python's source, which is not all there is here.
        raise TypeError(
            "torch.jit.script cannot compile rnn_ext.RNN; use torch.export or torch.jit.trace, or script torch's own "
            "RNN with the same weights: torch.jit.script(rnn_ext.to_torch(copy.deepcopy(model)))"
        )

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | None = None,
        *,
        lengths: Tensor | None = None,
        reset: Tensor | None = None,
        checkpoint_every: int | None = None,
        return_all_layers: bool = False,
    ) -> tuple[Any, Tensor]:
        """Runs the layers over a whole sequence.

        Args:
            input: see the class.
            hx: see the class.
            lengths: int64 ``(N,)``, for padded input of ragged length, in any order: outputs after a sequence's end
                are zero, ``h_n`` holds each sequence's own last states, and a reversed direction begins at its end.
            reset: bool, of the input's shape without features, for padded or unbatched input: True where a step has
                nothing before it, as at the start of an episode: its state is made from zeros, at the first step
                instead of from ``hx``, and a reversed direction begins anew at the step before it.
            checkpoint_every: in training, keep only the states of every so many steps, and compute those between
                again in backward; None for keeping all of them. For sequences of one length.
            return_all_layers: the first result is a list of every layer's output, before dropout; the last is the
                output.

        Raises:
            ValueError: ``lengths`` with a ``PackedSequence`` or unbatched input, not an int64 ``(N,)``, or out of
                range; ``reset`` with packed or nested input, or not a bool tensor of the input's shape;
                ``checkpoint_every`` that is not positive, or with ragged sequences or ``return_all_layers``.
        """
        weights = self._weights()
        if checkpoint_every is None and len(weights) == 1 and not return_all_layers:
            done = self._plain(input, hx, lengths, reset, weights[0])
            if done is not None:
                return done
        if isinstance(input, PackedSequence):
            if lengths is not None:
                raise ValueError("lengths is for padded input; a PackedSequence has its own")
            if reset is not None:
                raise ValueError("reset is for padded input; pass the padded batch with lengths, not a PackedSequence")
            data, batch_sizes, sorted_indices, unsorted_indices = input
            if hx is not None:
                hx = self.permute_hidden(hx, sorted_indices)
                self.check_forward_args(data, hx, batch_sizes)
            else:
                self.check_input(data, batch_sizes)
            outputs, h_n = self._run(data, hx, weights, (batch_sizes, None, None), checkpoint_every, return_all_layers)
            packed = _each(lambda h: PackedSequence(h, batch_sizes, sorted_indices, unsorted_indices), outputs)
            return packed, self.permute_hidden(h_n, unsorted_indices)

        if input.is_nested:
            if lengths is not None:
                raise ValueError("lengths is for padded input; a nested tensor has its own")
            if reset is not None:
                raise ValueError("reset is for padded input; pass the padded batch with lengths, not a nested tensor")
            jagged = Jagged(input)
            packed, h_n = self(
                jagged.pack(input), hx, checkpoint_every=checkpoint_every, return_all_layers=return_all_layers
            )
            return _each(jagged.unpack, packed), h_n

        dims = input.dim()
        if dims not in (2, 3):
            raise ValueError(f"RNN: Expected input to be 2D or 3D, got {dims}D tensor instead")
        batched = dims == 3
        if hx is not None and hx.dim() != dims:
            kind, size = ("batched 3-D", "3-D") if batched else ("unbatched 2-D", "2-D")
            raise RuntimeError(f"For {kind} input, hx should also be {size} but got {hx.dim()}-D tensor")
        batch_first = self.batch_first and batched
        if reset is not None:
            reset = _checked_reset(reset, input)
            reset = reset if batched else reset.unsqueeze(1)
            reset = reset.transpose(0, 1) if batch_first else reset
        if not batched:
            input = input.unsqueeze(1)
            hx = None if hx is None else hx.unsqueeze(1)
        self.check_input(input, None)
        if batch_first:
            input = input.transpose(0, 1)
        if hx is not None:
            states = len(weights)
            self.check_hidden_size(hx, (states, input.shape[1], self.hidden_size))
        if lengths is not None:
            if not batched:
                raise ValueError("lengths is for batched input; an unbatched sequence is its own length")
            # Without a step none could be right, and what is wrong is the input.
            if input.shape[0] > 0:
                lengths = _checked_lengths(lengths, input.shape[0], input.shape[1])
        outputs, h_n = self._run(input, hx, weights, (None, lengths, reset), checkpoint_every, return_all_layers)
        if batch_first:
            outputs = _each(lambda h: h.transpose(0, 1), outputs)
        if not batched:
            outputs, h_n = _each(lambda h: h.squeeze(1), outputs), h_n.squeeze(1)
        return outputs, h_n

    def _plain(
        self, x: Any, hx: Tensor | None, lengths: Any, reset: Any, weights: Sequence[Any]
    ) -> tuple[Tensor, Tensor] | None:
        """What is called most, a padded batch through one layer without options, by the shortest way: checks and
        bookkeeping of the general one take as long as a short sequence. None where there is more to do, or wrong."""
        if type(x) is not Tensor or x.is_nested or torch._C._is_any_autocast_enabled():
            return None
        w_ih, w_hh, b_ih, b_hh = weights if self.bias else (*weights, None, None)
        if x.dim() != 3 or x.dtype != w_hh.dtype:
            return None
        if self.zoneout or self.alpha != 1 or (self.recurrent_dropout and self.training):
            return None
        # On another device it is moved first.
        if reset is not None and not (_is_reset(reset, x) and reset.device == x.device):
            return None
        batch_first = self.batch_first
        if batch_first:
            x, reset = x.transpose(0, 1), None if reset is None else reset.transpose(0, 1)
        time, batch, features = x.shape
        if features != self.input_size or time == 0:
            return None
        if hx is not None and hx.shape != (1, batch, self.hidden_size):
            return None
        if lengths is not None and (wrong_with(lengths, time, batch) or not lengths.is_contiguous()):
            return None
        if reset is not None and hx is not None:
            hx = hx.masked_fill(reset[:1].unsqueeze(2), 0)
        tensors = (x, hx, w_ih, w_hh, b_ih, b_hh, None, lengths, reset, None)
        done = plain(tensors, "tanh" if self.mode == "RNN_TANH" else "relu", (1,), True)
        return (done[0].transpose(0, 1), done[1]) if batch_first and done is not None else done

    def _run(
        self,
        input: Tensor,
        hx: Tensor | None,
        weights: list[list[Tensor]],
        rows: tuple[Tensor | None, Tensor | None, Tensor | None],
        checkpoint_every: int | None,
        return_all_layers: bool,
    ) -> tuple[Any, Tensor]:
        batch_sizes, lengths, reset = rows
        return functional.rnn(
            input,
            weights,
            hx,
            nonlinearity="tanh" if self.mode == "RNN_TANH" else "relu",
            bidirectional=bool(self.bidirectional),
            dropout=self.dropout,
            training=self.training,
            batch_sizes=batch_sizes,
            lengths=lengths,
            reset=reset,
            recurrent_dropout=self.recurrent_dropout,
            zoneout=self.zoneout,
            alpha=self.alpha,
            checkpoint_every=checkpoint_every,
            return_all_layers=return_all_layers,
        )


def _each(change: Callable[[Any], Any], outputs: Any) -> Any:
    """Of one layer's output, or of a list of every layer's."""
    return [change(h) for h in outputs] if isinstance(outputs, list) else change(outputs)


def _checked_lengths(lengths: Any, time: int, batch: int) -> Tensor:
    if isinstance(lengths, Tensor):
        lengths = lengths.cpu()
    wrong = wrong_with(lengths, time, batch)
    if wrong:
        raise ValueError(wrong)
    return lengths


def _is_reset(reset: Any, input: Tensor) -> bool:
    return isinstance(reset, Tensor) and reset.dtype == torch.bool and reset.shape == input.shape[:-1]


def _checked_reset(reset: Any, input: Tensor) -> Tensor:
    if not _is_reset(reset, input):
        got = f"{reset.dtype} {tuple(reset.shape)}" if isinstance(reset, Tensor) else type(reset).__name__
        shape = tuple(input.shape[:-1])
        raise ValueError(f"reset must be a bool tensor of shape {shape}, one entry for each step, got {got}")
    return reset.to(input.device)


class RNNCell(nn.RNNCell):
    """One step of an Elman RNN, a drop-in for ``torch.nn.RNNCell``.

    Computes ``h' = tanh(W_ih x + b_ih + W_hh h + b_hh)``, or with ReLU. A single step leaves nothing to fuse over
    time, so it is torch's own composite op; for a sequence, :class:`RNN` is the fast one.

    Args:
        input_size: number of features of ``x``.
        hidden_size: number of features of ``h``.
        bias: whether there are ``b_ih`` and ``b_hh``. Default: True.
        nonlinearity: "tanh" or "relu". Default: "tanh".
        device: of the parameters.
        dtype: of the parameters.

    Shape:
        - input: ``(N, input_size)`` or ``(input_size,)``.
        - hx: ``(N, hidden_size)`` or ``(hidden_size,)``; zeros if absent.
        - output: as ``hx``.

    Raises:
        ValueError: in forward, an input or ``hx`` that is neither 1-D nor 2-D.
        RuntimeError: in forward, a wrong shape or an unknown nonlinearity.

    Example:
        >>> cell = RNNCell(10, 20)
        >>> h = torch.zeros(3, 20)
        >>> for x in torch.randn(6, 3, 10):
        ...     h = cell(x, h)
        >>> h.shape
        torch.Size([3, 20])
    """
