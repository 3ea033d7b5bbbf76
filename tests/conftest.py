"""Settings of the suite: generated shapes are the same on every run, and no timing decides a test."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from by_hand import LAYOUTS
from hypothesis import settings

import rnn_ext
from rnn_ext import layer as layer_module

settings.register_profile("rnn_ext", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("rnn_ext")


def pytest_configure() -> None:
    """Whoever asks for a build by RNN_EXT_CUDA tests that build, and not another that Python finds first."""
    asked, built = os.environ.get("RNN_EXT_CUDA"), rnn_ext.build_info()["cuda"]
    if asked and built != {"0": False, "1": True}.get(asked, asked):
        raise pytest.UsageError(f"RNN_EXT_CUDA={asked}, but the build in {rnn_ext.__file__} says {built}")


def pytest_report_header() -> str:
    """Which kernels this run says nothing of: an instruction set that the machine lacks is compiled, and no more."""
    info = rnn_ext.build_info()
    lacking = sorted(set(info["cpu_isas_compiled"]) - set(info["cpu_isas_runnable"]))
    return (
        f"rnn_ext: kernels for {', '.join(info['cpu_isas_runnable'])}; not on this CPU: {', '.join(lacking) or 'none'}"
    )


@pytest.fixture(autouse=True)
def _same_random_numbers() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=LAYOUTS)
def layout(request: pytest.FixtureRequest) -> str:
    """Of a batch, for the tests of the mathematics; a test may parametrise its own."""
    return request.param


@pytest.fixture
def plain_calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each of the plain ops was called."""
    calls = Counter[str]()

    def count(name: str) -> None:
        op = getattr(layer_module, name)

        def counted(*args: Any) -> Any:
            calls[name] += 1
            return op(*args)

        monkeypatch.setattr(layer_module, name, counted)

    count("_plain_layer")
    count("_plain_layer_backward")
    return calls
