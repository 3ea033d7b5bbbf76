"""The way of a call to its kernel: which op of ``csrc/ops.cpp``, under which autograd, or the reference instead."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rnn_ext import _C

_DTYPES = frozenset(getattr(torch, name) for name in _C.build_info()["dtypes"])
_DEVICES = frozenset(("cpu", "meta", "cuda") if _C.build_info()["cuda"] is True else ("cpu", "meta"))
_warned: set[tuple[str, torch.dtype]] = set()


def has_kernel(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether this build has a kernel for tensors of ``dtype`` on ``device``; meta tensors count as having."""
    return dtype in _DTYPES and device.type in _DEVICES


def use_reference(t: Tensor) -> bool:
    """True where no kernel is built for ``t``; the first time for a device and dtype, warns."""
    device, dtype = t.device, t.dtype
    if has_kernel(device, dtype):
        return False
    if (device.type, dtype) not in _warned:
        _warned.add((device.type, dtype))
        remedy = (
            f"use a dtype that has one ({', '.join(sorted(str(d) for d in _DTYPES))})"
            if device.type in _DEVICES
            else "this build of rnn_ext is CPU-only, so move the module and its input to the CPU for full speed"
        )
        warnings.warn(
            f"rnn_ext has no kernel for {dtype} on {device.type}; it runs the plain PyTorch reference, which is "
            f"right but slow. To avoid it, {remedy}.",
            stacklevel=4,
        )
    return True


def recorded() -> bool:
    """Whether the compiler, the exporter or the tracer is recording what runs now."""
    return torch.compiler.is_compiling() or torch._C._is_tracing()


def autocasts(device: torch.device) -> bool:
    """Whether autocast is on for tensors of a device."""
    kind = device.type
    return torch._C._is_any_autocast_enabled() and kind != "meta" and torch.is_autocast_enabled(kind)


def wants_gradient(args: Sequence[Any]) -> bool:
    """Whether autograd is to record a call with these arguments."""
    if torch.is_grad_enabled():
        for a in args:
            if isinstance(a, Tensor) and a.requires_grad:
                return True
    return False


def _transformed() -> bool:
    """Whether there is more to derive than gradients in reverse: tangents, or what functorch asks for."""
    return torch.autograd.forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()


def plain_reverse_mode(*args: Any) -> bool:
    """Whether gradients are wanted, and nothing but gradients: no recording, no transform, no tangent."""
    return wants_gradient(args) and not _transformed() and not recorded()


# Not in a build whose CPU tensors go to emulated CUDA kernels.
_HAS_ONE_OP = torch._C._dispatch_has_kernel_for_dispatch_key("rnn_ext::plain_layer", "CPU")
_ORDINARY = {Tensor, torch.nn.Parameter, type(None)}


def is_ordinary(tensors: Sequence[Tensor | None], x: Tensor, w: Tensor) -> bool:
    """Whether a call may go to an op that does several primitives' work: ordinary CPU tensors, all of a dtype that has
    a kernel, and no one who would replace or differentiate the primitives: no tensor subclass, recording, transform or
    tangent. Only ``x`` and ``w`` are asked for device and dtype, which takes as long as all the rest; the op compares
    the others."""
    # First, so that the compiler sees no more of this.
    if recorded() or not (_HAS_ONE_OP and _ORDINARY.issuperset(map(type, tensors))):
        return False
    return x.is_cpu and w.is_cpu and x.dtype in _DTYPES and not _transformed()


def watched() -> bool:
    """Whether a dispatch mode sees what runs, to whom a primitive may mean more than an op that contains it."""
    return bool(torch._C._len_torch_dispatch_stack())


def call(op: Any, function: type[torch.autograd.Function], args: tuple[Any, ...]) -> Any:
    """The way of a call to its kernel."""
    if recorded():
        # As one op, with the derivative that ``register`` gave it.
        return op(*args)
    if torch._C._are_functorch_transforms_active():
        return function.apply(*args)
    # Duals of forward mode do not require grad.
    if plain_reverse_mode(*args) or torch.autograd.forward_ad._current_level >= 0:
        return apply(function, args)
    return below_autograd(op, args)


def apply(function: type[torch.autograd.Function], args: tuple[Any, ...]) -> Any:
    """``function.apply`` outside of functorch, without the 30 us that it spends on inspecting forward's signature."""
    return super(torch.autograd.Function, function).apply(*args)  # type: ignore[misc]


def below_autograd(op: Any, args: tuple[Any, ...]) -> Any:
    """The kernel itself. The op's registered autograd, in Python, would take 10 us to find nothing to do. (The plain
    ops have none, and need no such guard, which takes 1 us.)"""
    with torch._C._AutoDispatchBelowAutograd():
        return op(*args)


def register(name: str, function: type[torch.autograd.Function]) -> None:
    """Gives an op the derivatives and the vmap of ``function``: for the compiler, for traced graphs and for whoever
    calls ``torch.ops.rnn_ext`` directly."""
    torch.library.register_autograd(name, function.backward, setup_context=function.setup_context)
    torch.library.register_vmap(name, function.vmap)


def check_constant(**arguments: Tensor | None) -> None:
    """Raises RuntimeError for an argument, by its name, that requires a gradient."""
    for name, t in arguments.items():
        if t is not None and t.requires_grad:
            raise RuntimeError(f"{name} must be a constant, got one that requires a gradient; pass {name}.detach()")


def states_shape(
    rows: Tensor, seed: Tensor | None, w: Tensor, batch_sizes: Tensor | None, direction: Sequence[int]
) -> tuple[Any, ...]:
    """``(G, B, H)``, of the last states of a call."""
    batch: Any  # an int, or the compiler's symbol for one
    if batch_sizes is None:
        batch = rows.shape[1]
    elif seed is not None:
        batch = seed.shape[1]
    else:
        # Without a seed the batch of packed data is known only from the values of batch_sizes.
        batch = torch.library.get_ctx().new_dynamic_size()
    return len(direction), batch, w.shape[1]
