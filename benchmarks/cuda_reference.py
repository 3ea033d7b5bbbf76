"""The linear recurrence in PyTorch, and how sentryward is told which of its tensors are which of a kernel's.

In real arithmetic, that is: what it proves says nothing of rounding.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# y_t = f_t * (v_t + y_{t-1} W), forward in time, from a ready product; ``weight`` is what the states are multiplied by.
REFERENCE = """
import torch


def reference(weight, input, factor, seed):
    y = factor[0] * (input[0] + seed)
    states = [y]
    for t in range(1, input.shape[0]):
        y = factor[t] * (input[t] + y @ {weight})
        states.append(y)
    return torch.stack(states), y
"""
INPUTS, OUTPUTS = ("weight", "input", "factor", "seed"), ("output", "last")


def strides(shape: Sequence[int]) -> list[int]:
    """Of contiguous float32, in bytes."""
    found, stride = [], 4
    for size in reversed(shape):
        found.append(stride)
        stride *= size
    return found[::-1]


def allocation(name: str) -> str:
    """What sentryward calls a kernel's object of this name: each part with its length before it."""
    return f"6:global{len(name)}:{name}"


def binding(time: int, batch: int, hidden: int) -> dict[str, Any]:
    """Of one group. Left is the reference, right the kernel; both have the same layouts."""
    sequence, state = [time, batch, hidden], [batch, hidden]
    shapes = {"weight": [hidden, hidden], "input": sequence, "factor": sequence, "seed": state}
    shapes |= {"output": sequence, "last": state}

    def layout(name: str, *sides: str) -> dict[str, Any]:
        found: dict[str, Any] = {"shape": shapes[name], "element_bytes": 4}
        for side in sides:
            found |= {f"{side}_offset": 0, f"{side}_strides_bytes": strides(shapes[name])}
        return found

    layouts = {name: layout(name, "source", "target") for name in INPUTS}
    outputs = [
        {"left_allocation": name, "right_allocation": allocation(name), **layout(name, "left", "right")}
        for name in OUTPUTS
    ]
    return {
        "reference": {
            "arguments": [
                {"name": name, "allocation": name, "shape": shapes[name], "dtype": "float32"} for name in INPUTS
            ]
        },
        "left_inputs": {"layouts": layouts, "allocations": {name: name for name in INPUTS}},
        "right_inputs": {
            "layouts": {allocation(name): layouts[name] for name in INPUTS},
            "allocations": {allocation(name): name for name in INPUTS},
        },
        "outputs": {"kind": "dense_tensors", "tensors": outputs},
    }


def write(directory: Path, sizes: tuple[int, int, int], wrong: bool) -> list[str]:
    """The reference and its binding as files, and sentryward's options for them; ``wrong``: W transposed."""
    # PyTorch's export imports the module in which a function is, and sentryward has given the first one no name.
    (directory / "recurrence_reference.py").write_text(REFERENCE.format(weight="weight.t()" if wrong else "weight"))
    source, bound = directory / "reference.py", directory / "reference_binding.json"
    source.write_text("from recurrence_reference import reference\n")
    bound.write_text(json.dumps(binding(*sizes)))
    return ["--reference", str(source), "--reference-binding", str(bound)]
