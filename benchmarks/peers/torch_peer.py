"""torch.nn.RNN; and what any module with its interface needs, for ours."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from benchmarks.grid import Shape
from benchmarks.peers.peer import Array, Contestant, Problem


class ModulePeer:
    """A module with torch.nn.RNN's interface; in the dtype of the shape if none is given."""

    def __init__(
        self,
        name: str,
        module: Callable[..., nn.Module],
        version: str,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> None:
        self.name, self._module, self._version = name, module, version
        self._device, self._dtype = device, dtype

    def dtype(self, shape: Shape) -> torch.dtype:
        """That it runs a shape in."""
        return self._dtype or getattr(torch, shape.dtype)

    def version(self) -> str:
        return self._version

    def supports(self, shape: Shape, mode: str) -> bool:
        return True

    def prepare(self, problem: Problem) -> Contestant:
        # Read by torch's GEMMs, by its OpenMP loops and by our kernels.
        torch.set_num_threads(problem.threads)
        shape = problem.shape
        module = self._module(shape.input_size, shape.hidden_size, shape.num_layers, bidirectional=shape.bidirectional)
        module.load_state_dict({name: torch.from_numpy(value) for name, value in problem.weights.items()})
        module = module.to(self._device, self.dtype(shape))
        x, g = (self._input(array, problem) for array in (problem.x, problem.g))
        if not problem.training:

            @torch.inference_mode()
            def forward() -> Tensor | PackedSequence:
                return module(x)[0]

            return Contestant(forward, lambda output: [_padded(output, shape.time)])

        parameters = list(module.parameters())

        def training() -> tuple[Tensor, ...]:
            return torch.autograd.grad(_data(module(x)[0]), parameters, _data(g))

        return Contestant(training, lambda gradients: [_array(t) for t in gradients])

    def _input(self, array: Array, problem: Problem) -> Tensor | PackedSequence:
        tensor = torch.from_numpy(array).to(self._device, self.dtype(problem.shape))
        return tensor if problem.lengths is None else pack_padded_sequence(tensor, torch.from_numpy(problem.lengths))


def _data(output: Tensor | PackedSequence) -> Tensor:
    return output.data if isinstance(output, PackedSequence) else output


def _array(tensor: Tensor) -> Array:
    return tensor.float().cpu().numpy()


def _padded(output: Tensor | PackedSequence, time: int) -> Array:
    if isinstance(output, PackedSequence):
        output = pad_packed_sequence(output, total_length=time)[0]
    return _array(output)


def make() -> ModulePeer:
    return ModulePeer("torch.nn.RNN", nn.RNN, torch.__version__)
