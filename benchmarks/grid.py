"""The shapes that are measured, and what is done with each."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """One workload: T time steps, B sequences, I input features, H hidden units."""

    time: int
    batch: int
    input_size: int
    hidden_size: int
    num_layers: int = 1
    bidirectional: bool = False
    packed: bool = False
    dtype: str = "float32"

    def __str__(self) -> str:
        text = f"{self.time}x{self.batch}x{self.input_size}x{self.hidden_size}"
        if self.num_layers > 1:
            text += f" {self.num_layers} layers"
        if self.bidirectional:
            text += " bidir"
        if self.packed:
            text += " packed"
        if self.dtype != "float32":
            text += f" {self.dtype}"
        return text

    @property
    def directions(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def layer_inputs(self) -> list[int]:
        """Input features of each layer."""
        return [self.input_size] + [self.directions * self.hidden_size] * (self.num_layers - 1)

    @property
    def lengths(self) -> list[int]:
        """Steps of each sequence, longest first; if packed, spread evenly from T down to 1."""
        if not self.packed or self.batch == 1:
            return [self.time] * self.batch
        step = (self.time - 1) / (self.batch - 1)
        return [round(self.time - i * step) for i in range(self.batch)]

    @property
    def batch_sizes(self) -> list[int]:
        """Sequences that are still alive, for each step."""
        lengths = self.lengths
        return (
            [sum(length > t for length in lengths) for t in range(self.time)]
            if self.packed
            else [self.batch] * self.time
        )

    @property
    def flops(self) -> float:
        """Multiply-adds times two of the forward pass, projection and recurrence; padding does not count."""
        rows = sum(self.lengths)
        return sum(2.0 * rows * self.directions * self.hidden_size * (i + self.hidden_size) for i in self.layer_inputs)


QUICK = (
    Shape(10, 3, 100, 20),
    Shape(100, 1, 64, 64),
    Shape(100, 32, 64, 64),
    Shape(100, 32, 256, 256),
)

# What the pictures of time against H and against B are drawn from.
SWEEP_TIME = 100
SWEEP_BATCHES = (1, 32)
SWEEP_HIDDEN = 256
HIDDEN_SWEEP = tuple(
    Shape(SWEEP_TIME, batch, hidden, hidden) for batch in SWEEP_BATCHES for hidden in (16, 32, 64, 128, 256, 512, 1024)
)
BATCH_SWEEP = tuple(
    Shape(SWEEP_TIME, batch, SWEEP_HIDDEN, SWEEP_HIDDEN) for batch in (1, 2, 4, 8, 16, 32, 64, 128, 256)
)

_SITUATIONS = (
    # A single step, and a handful: what is paid for a call.
    Shape(1, 1, 64, 64),
    Shape(10, 3, 100, 20),
    Shape(10, 32, 64, 64),
    Shape(1, 1, 512, 512),
    Shape(10, 1, 512, 512),
    # Compute-bound.
    Shape(1000, 16, 64, 64),
    Shape(50, 64, 1024, 1024),
    Shape(10, 256, 1024, 1024),
    # Sizes that fit no vector.
    Shape(100, 1, 101, 101),
    Shape(100, 17, 101, 101),
    Shape(100, 32, 250, 250),
    # Layers, directions, ragged batches.
    Shape(100, 1, 128, 128, bidirectional=True),
    Shape(100, 32, 128, 128, num_layers=2),
    Shape(100, 32, 128, 128, bidirectional=True),
    Shape(100, 32, 128, 128, num_layers=2, bidirectional=True),
    Shape(100, 32, 128, 128, packed=True),
    Shape(100, 32, 128, 128, bidirectional=True, packed=True),
    # Long.
    Shape(10000, 1, 64, 64),
    Shape(10000, 8, 32, 32),
    Shape(100000, 1, 32, 32),
    # 16 bits, beside ours in 32. Of float16 no more: a core without such arithmetic takes a minute for a larger row.
    Shape(50, 64, 1024, 1024, dtype="bfloat16"),
    Shape(100, 256, 256, 256, dtype="bfloat16"),
    Shape(100, 256, 256, 256, dtype="float16"),
)

# In the order of the tables; a dict because the sweeps cross.
FULL = tuple(dict.fromkeys((*_SITUATIONS, *HIDDEN_SWEEP, *BATCH_SWEEP)))

FORWARD = "forward"
TRAINING = "forward+backward"
MODES = (FORWARD, TRAINING)
