"""Settings of the suite: generated shapes are the same on every run, and no timing decides a test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

settings.register_profile("rnn_ext", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("rnn_ext")


@pytest.fixture(autouse=True)
def _same_random_numbers() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)
