"""Who is measured. Each peer gets the same arrays, and its result is compared before any timing."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from benchmarks.grid import FORWARD, Shape
from benchmarks.peers.peer import Array, Contestant, Peer, Problem, Unavailable

OURS, TORCH = "rnn_ext", "torch.nn.RNN"

# Name: module. In the order of the tables' columns.
MODULES = {
    OURS: "ours",
    "rnn_ext float32": "ours_float32",
    TORCH: "torch_peer",
    "JAX": "jax_peer",
    "oneDNN": "onednn_peer",
    "ONNX Runtime": "onnxruntime_peer",
    "OpenVINO": "openvino_peer",
}

# Relative to the largest element. Float32: sums of up to 10⁵ terms, in a different order each. With 16 bits all states
# and gradients are rounded to 2⁻⁹ or 2⁻¹² of themselves, and torch.nn.RNN's sums in between as well.
TOLERANCES = {"float32": 1e-3, "bfloat16": 5e-2, "float16": 1e-2}


class Disagrees(Exception):
    """A peer computes something else."""


def load(names: Sequence[str]) -> tuple[list[Peer], list[str]]:
    """The peers that can run here, and for each of the others a line that says why it cannot."""
    peers: list[Peer] = []
    missing = []
    for name in names:
        try:
            peers.append(importlib.import_module(f"benchmarks.peers.{MODULES[name]}").make())
        except ImportError as error:
            missing.append(f"{name} is left out: no module {error.name}; pip install '.[bench]' brings it")
        except Unavailable as error:
            missing.append(f"{name} is left out: {error}")
    return peers, missing


def make_problem(shape: Shape, mode: str, threads: int) -> Problem:
    """Random weights and input, the same for a shape every time."""
    torch.manual_seed(0)
    module = nn.RNN(shape.input_size, shape.hidden_size, shape.num_layers, bidirectional=shape.bidirectional)
    weights = {name: value.numpy() for name, value in module.state_dict().items()}
    x = torch.randn(shape.time, shape.batch, shape.input_size)
    g = torch.randn(shape.time, shape.batch, shape.directions * shape.hidden_size)
    lengths = None
    if shape.packed:
        lengths = np.asarray(shape.lengths, np.int64)
        ended = torch.arange(shape.time).unsqueeze(1) >= torch.from_numpy(lengths)
        x[ended], g[ended] = 0.0, 0.0
    return Problem(shape, mode, threads, weights, x.numpy(), g.numpy(), lengths)


def _compare(results: list[Array], expected: list[Array], names: Sequence[str], tolerance: float) -> None:
    for result, right, name in zip(results, expected, names, strict=True):
        if result.shape != right.shape:
            raise Disagrees(f"{name} has the shape {result.shape}, not {right.shape}")
        scale = float(np.abs(right).max())
        error = float(np.abs(result - right).max())
        # Written so that NaN fails.
        if not error <= tolerance * scale:
            raise Disagrees(f"{name} differs by {error:.1e}, where the largest element is {scale:.1e}")


def contestants(
    problem: Problem, peers: Sequence[Peer], tolerance: float | None = None
) -> tuple[dict[str, Contestant], dict[str, str]]:
    """Those that can do the problem and agree with torch.nn.RNN about it; and why others fail. ``tolerance``: relative
    to the largest element; None for what the shape's dtype asks for.

    Raises:
        Disagrees: rnn_ext does not agree. A peer's error only costs it its place; ours is a bug.
    """
    tolerance = TOLERANCES[problem.shape.dtype] if tolerance is None else tolerance
    names = ["output"] if problem.mode == FORWARD else list(problem.weights)
    able = sorted((p for p in peers if p.supports(problem.shape, problem.mode)), key=lambda p: p.name != TORCH)
    expected: list[Array] | None = None
    found: dict[str, Contestant] = {}
    failed: dict[str, str] = {}
    for peer in able:
        try:
            contestant = peer.prepare(problem)
            result = contestant.read(contestant.run())
            if expected is None:
                expected = result
            _compare(result, expected, names, tolerance)
        except Exception as error:  # whatever a foreign library throws
            if peer.name in (OURS, TORCH):
                raise
            failed[peer.name] = f"{peer.name}, {problem.shape} {problem.mode}: {type(error).__name__}: {error}"
            continue
        found[peer.name] = contestant
    return {name: found[name] for name in (*MODULES, *found) if name in found}, failed
