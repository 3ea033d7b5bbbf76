"""RNN and RNNCell: the parameters, argument checks and text of ``torch.nn``'s, on rnn_ext's kernels.

Both build on torch's own base classes, so that construction, initialisation, ``state_dict``, old checkpoints and
``isinstance(m, nn.RNNBase)`` are torch's. ``RNN`` does not derive from ``nn.RNN``, which torch.compile refuses to
trace. Nothing numeric is here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from rnn_ext import functional


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
        device: of the parameters.
        dtype: of the parameters.

    Shape:
        - input: ``(T, N, input_size)``, ``(N, T, input_size)`` with ``batch_first``, ``(T, input_size)``
          unbatched, or a ``PackedSequence``.
        - hx: ``(num_layers * directions, N, hidden_size)``, without N if unbatched; zeros if absent.
        - output: as ``input``, with ``directions * hidden_size`` features; packed if the input was.
        - h_n: as ``hx``.

    Raises:
        ValueError: an unknown nonlinearity, a size that is not positive, dropout outside [0, 1], ``proj_size``; in
            forward an input that is neither 2-D nor 3-D, or of another dtype than the weights.
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
        super().__init__("RNN_TANH" if nonlinearity == "tanh" else "RNN_RELU", *args, **kwargs)

    def _weights(self) -> list[list[Tensor]]:
        """The current weights by layer and direction, with torch's cache of them brought up to date."""
        own = self._parameters
        weights = []
        for name in self._flat_weights_names:
            # A parametrized or pruned weight is an attribute, computed or set, and not a parameter.
            weight = own.get(name)
            weights.append(getattr(self, name) if weight is None else weight)
        # What the exporter puts in the parameters' place while it records is not to be kept.
        if not torch.compiler.is_exporting() and (
            len(weights) != len(self._flat_weights)
            or any(a is not b for a, b in zip(weights, self._flat_weights, strict=True))
        ):
            self._flat_weights = weights
        size = 4 if self.bias else 2
        return [weights[i : i + size] for i in range(0, len(weights), size)]

    def __prepare_scriptable__(self) -> Any:
        # What torch.jit.script asks first of every module. It compiles Python's source, which is not all there is here.
        raise TypeError(
            "torch.jit.script cannot compile rnn_ext.RNN; use torch.export or torch.jit.trace, or script torch's own "
            "RNN with the same weights: torch.jit.script(rnn_ext.to_torch(copy.deepcopy(model)))"
        )

    def forward(
        self, input: Tensor | PackedSequence, hx: Tensor | None = None
    ) -> tuple[Tensor | PackedSequence, Tensor]:
        """Runs the layers over a whole sequence; see the class."""
        weights = self._weights()
        if isinstance(input, PackedSequence):
            data, batch_sizes, sorted_indices, unsorted_indices = input
            if hx is not None:
                hx = self.permute_hidden(hx, sorted_indices)
                self.check_forward_args(data, hx, batch_sizes)
            else:
                self.check_input(data, batch_sizes)
            output, h_n = self._run(data, hx, weights, batch_sizes)
            packed = PackedSequence(output, batch_sizes, sorted_indices, unsorted_indices)
            return packed, self.permute_hidden(h_n, unsorted_indices)

        dims = input.dim()
        if dims not in (2, 3):
            raise ValueError(f"RNN: Expected input to be 2D or 3D, got {dims}D tensor instead")
        batched = dims == 3
        if hx is not None and hx.dim() != dims:
            kind, size = ("batched 3-D", "3-D") if batched else ("unbatched 2-D", "2-D")
            raise RuntimeError(f"For {kind} input, hx should also be {size} but got {hx.dim()}-D tensor")
        batch_first = self.batch_first and batched
        if not batched:
            input = input.unsqueeze(1)
            hx = None if hx is None else hx.unsqueeze(1)
        self.check_input(input, None)
        if batch_first:
            input = input.transpose(0, 1)
        if hx is not None:
            states = len(weights)
            self.check_hidden_size(hx, (states, input.shape[1], self.hidden_size))
        if input.shape[0] == 0:
            raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
        output, h_n = self._run(input, hx, weights, None)
        if batch_first:
            output = output.transpose(0, 1)
        if not batched:
            output, h_n = output.squeeze(1), h_n.squeeze(1)
        return output, h_n

    def _run(
        self, input: Tensor, hx: Tensor | None, weights: list[list[Tensor]], batch_sizes: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        return functional.rnn(
            input,
            weights,
            hx,
            nonlinearity="tanh" if self.mode == "RNN_TANH" else "relu",
            bidirectional=bool(self.bidirectional),
            dropout=self.dropout,
            training=self.training,
            batch_sizes=batch_sizes,
        )


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
