"""Generated problems for the primitives: shapes that tiles do not divide, every layout, every option."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

# Around the edges of vectors (4, 8, 16 lanes), of two-chain sums (64) and of panels (64, 128).
HIDDEN = (1, 2, 3, 5, 7, 8, 15, 16, 17, 31, 33, 63, 64, 65, 97, 129, 200)


@dataclass(frozen=True)
class Problem:
    """Arguments of one of the primitives by name."""

    op: str
    args: dict[str, Any]

    def cast(self, dtype: torch.dtype) -> Problem:
        """The same numbers in another floating dtype; strides stay."""
        names = [k for k, v in self.args.items() if isinstance(v, Tensor) and v.is_floating_point()]
        return self.with_args(**{n: _cast(self.args[n], dtype) for n in names})

    def with_args(self, **changes: Any) -> Problem:
        return replace(self, args={**self.args, **changes})

    @property
    def tensors(self) -> list[str]:
        """Names of the arguments that have a gradient."""
        return [k for k in ("u", "v", "h0", "seed", "w", "factor") if isinstance(self.args.get(k), Tensor)]

    def run(self, module: Any) -> tuple[Tensor, Tensor]:
        """Calls the primitive of ``rnn_ext.ops`` or of ``rnn_ext.reference``."""
        return getattr(module, self.op)(**self.args)

    def __str__(self) -> str:
        shown = {k: tuple(v.shape) if isinstance(v, Tensor) else v for k, v in self.args.items() if v is not None}
        return " ".join(f"{k}={v}" for k, v in shown.items())


def _cast(t: Tensor, dtype: torch.dtype) -> Tensor:
    """``t.to(dtype)``, but with the strides of ``t`` and its offset; ``to`` closes the gaps of a slice."""
    if t.dtype == dtype:
        return t
    storage = t.as_strided((t.untyped_storage().nbytes() // t.element_size(),), (1,), 0)
    return storage.to(dtype).as_strided(t.shape, t.stride(), t.storage_offset())


def _strided(rows: Tensor) -> Tensor:
    """The same values as a slice of a wider buffer, batch first if padded: none of its strides is the usual one."""
    wide = torch.nn.functional.pad(rows, (1, 2))
    if rows.dim() == 3:
        wide = wide.transpose(0, 1).contiguous().transpose(0, 1)
    return wide[..., 1:-2]


def make(
    time: int,
    batch: int,
    hidden: int,
    direction: tuple[int, ...],
    layout: str,
    *,
    linear: bool = False,
    nonlinearity: str = "tanh",
    seed_kind: str | None = None,
    transpose: bool = False,
    no_v: bool = False,
    random_seed: int = 0,
    strided: bool = False,
    resets: bool = False,
    masked: bool = False,
    leaks: str | None = None,
) -> Problem:
    """A float64 problem of the given shape; layout is "dense", "lengths" or "packed".

    What leaks is "part" of a state, which may be nothing or all, or the "whole" of some. A linear problem that leaks is
    of ``leaky_linear_recurrence``, whatever ``nonlinearity`` says; where it would start from a state, but is
    transposed, it starts from a product.
    """
    g = torch.Generator().manual_seed(random_seed)
    groups = len(direction)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64) * scale

    batch_sizes = lengths = None
    columns = groups * hidden
    rows: tuple[int, ...] = (time, batch, columns)
    if layout != "dense":
        ragged = torch.randint(1, time + 1, (batch,), generator=g)
        if batch > 1 and time > 1 and ragged.min() == ragged.max():
            ragged[-1] = 1 + ragged[-1] % time
        if layout == "packed":
            ragged = ragged.sort(descending=True).values
            ragged[0] = time
            batch_sizes = (ragged > torch.arange(time).unsqueeze(1)).sum(1)
            rows = (int(ragged.sum()), columns)
        else:
            lengths = ragged
    first = normal(*rows)
    factor = normal(*rows, scale=0.5)
    if strided:
        first, factor = _strided(first), _strided(factor)
    w = normal(columns, hidden, scale=hidden**-0.5)
    seed = None if seed_kind is None else normal(groups, batch, hidden)
    if strided:
        w, seed = _strided(w), None if seed is None else _strided(seed)
    common = {"batch_sizes": batch_sizes, "lengths": lengths, "reset": None, "mask": None, "direction": direction}
    if resets and layout != "packed":
        common["reset"] = torch.rand(time, batch, generator=g) < 0.3
    if masked:
        common["mask"] = 2.0 * torch.randint(2, (groups, batch, hidden), generator=g).double()
    leak = None
    if leaks == "whole":
        leak = torch.rand(rows, generator=g) < 0.5
    elif leaks:
        leak = torch.where(torch.rand(rows, generator=g) < 0.5, torch.rand(rows, generator=g), 2.0).double()
        leak = torch.where(leak == 2, torch.randint(2, rows, generator=g).double(), leak)
    if leak is not None and strided:
        leak = _strided(leak)
    if not linear:
        args = {"u": first, "h0": seed, "w": w, "nonlinearity": nonlinearity, "leak": leak}
        return Problem("recurrence", {**args, **common})
    args = {
        "v": None if no_v else first,
        "seed": seed,
        "w": w,
        "factor": factor,
        "seed_kind": seed_kind or "state",
        "transpose": transpose,
        **common,
    }
    if not leaks:
        return Problem("linear_recurrence", {"derivative": nonlinearity, **args})
    if transpose and seed_kind == "state":
        args["seed_kind"] = "product"
    return Problem("leaky_linear_recurrence", {"leak": leak, **args})


@st.composite
def problems(draw: st.DrawFn, max_hidden: int = 200, max_time: int = 12, max_batch: int = 19) -> Problem:
    """Any problem."""
    layout = draw(st.sampled_from(["dense", "lengths", "packed"]))
    linear = draw(st.booleans())
    return make(
        draw(st.integers(1, max_time)),
        draw(st.integers(int(layout == "packed"), max_batch)),
        draw(st.sampled_from([h for h in HIDDEN if h <= max_hidden])),
        tuple(draw(st.lists(st.sampled_from([1, -1]), min_size=1, max_size=3))),
        layout,
        linear=linear,
        nonlinearity=draw(st.sampled_from(["tanh", "relu", "given"] if linear else ["tanh", "relu"])),
        seed_kind=draw(st.sampled_from([None, "state", "product"] if linear else [None, "state"])),
        transpose=draw(st.booleans()),
        no_v=linear and draw(st.booleans()),
        random_seed=draw(st.integers(0, 1000)),
        strided=draw(st.booleans()),
        resets=draw(st.booleans()),
        masked=draw(st.booleans()),
        leaks=draw(st.sampled_from([None, "part", "whole"])),
    )
