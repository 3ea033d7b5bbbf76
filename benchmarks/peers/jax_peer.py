"""JAX: ``lax.scan`` under jit, the projection of all steps as one product before it, gradients by ``jax.vjp``."""

from __future__ import annotations

import os
from typing import Any

# Before the import: the client that is made then would look for other devices.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks.grid import Shape
from benchmarks.peers.peer import Contestant, Problem


def _layer(weights: dict[str, Any], suffix: str, x: Any, alive: Any, reverse: bool) -> Any:
    w_ih, w_hh, b_ih, b_hh = (weights[f"{n}_{suffix}"] for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
    u = x @ w_ih.T + (b_ih + b_hh)
    h0 = jnp.zeros((x.shape[1], w_hh.shape[0]), x.dtype)

    def step(h: Any, u_t: Any) -> tuple[Any, Any]:
        h = jnp.tanh(u_t + h @ w_hh.T)
        return h, h

    def ragged_step(h: Any, inputs: tuple[Any, Any]) -> tuple[Any, Any]:
        u_t, alive_t = inputs
        new = jnp.tanh(u_t + h @ w_hh.T)
        # Not begun yet (in reverse) or ended: the state stays, the output is zero.
        return jnp.where(alive_t, new, h), jnp.where(alive_t, new, 0.0)

    if alive is None:
        return lax.scan(step, h0, u, reverse=reverse)[1]
    return lax.scan(ragged_step, h0, (u, alive), reverse=reverse)[1]


def _forward(weights: dict[str, Any], x: Any, alive: Any, layers: int, directions: int) -> Any:
    for layer in range(layers):
        x = jnp.concatenate(
            [
                _layer(weights, f"l{layer}" + "_reverse" * direction, x, alive, bool(direction))
                for direction in range(directions)
            ],
            -1,
        )
    return x


class JaxPeer:
    name = "JAX"

    def version(self) -> str:
        return jax.__version__

    def supports(self, shape: Shape, mode: str) -> bool:
        return shape.dtype == "float32"

    def prepare(self, problem: Problem) -> Contestant:
        # The pool of XLA's CPU client has as many threads as the process may use CPUs when the client is made, and
        # there is no option for it: benchmarks/cores.py sees to that.
        shape = problem.shape
        size = (shape.num_layers, shape.directions)
        weights = {name: jnp.asarray(value) for name, value in problem.weights.items()}
        x, g = jnp.asarray(problem.x), jnp.asarray(problem.g)
        alive = None
        if problem.lengths is not None:
            alive = jnp.asarray(np.arange(shape.time)[:, None, None] < problem.lengths[:, None])

        if not problem.training:
            forward = jax.jit(lambda w, x, alive: _forward(w, x, alive, *size))
            return Contestant(lambda: forward(weights, x, alive).block_until_ready(), lambda y: [np.asarray(y)])

        @jax.jit
        def gradients(w: Any, x: Any, alive: Any, g: Any) -> Any:
            return jax.vjp(lambda w: _forward(w, x, alive, *size), w)[1](g)[0]

        return Contestant(
            lambda: jax.block_until_ready(gradients(weights, x, alive, g)),
            lambda result: [np.asarray(result[name]) for name in problem.weights],
        )


def make() -> JaxPeer:
    return JaxPeer()
