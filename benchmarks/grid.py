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

    def __str__(self) -> str:
        text = f"{self.time}x{self.batch}x{self.input_size}x{self.hidden_size}"
        if self.num_layers > 1:
            text += f" {self.num_layers} layers"
        if self.bidirectional:
            text += " bidir"
        if self.packed:
            text += " packed"
        return text

    @property
    def flops(self) -> float:
        """Multiply-adds times two of the forward pass, projection and recurrence."""
        directions = 2 if self.bidirectional else 1
        total, features = 0.0, self.input_size
        for _ in range(self.num_layers):
            total += 2.0 * self.time * self.batch * directions * self.hidden_size * (features + self.hidden_size)
            features = directions * self.hidden_size
        return total


QUICK = (
    Shape(1, 1, 64, 64),
    Shape(10, 3, 100, 20),
    Shape(100, 1, 64, 64),
    Shape(100, 32, 64, 64),
    Shape(100, 32, 256, 256),
)

FULL = (
    Shape(1, 1, 64, 64),
    Shape(10, 3, 100, 20),
    Shape(100, 1, 64, 64),
    Shape(100, 1, 256, 256),
    Shape(100, 1, 1024, 1024),
    Shape(1000, 16, 64, 64),
    Shape(100, 32, 64, 64),
    Shape(100, 32, 256, 256),
    Shape(50, 64, 1024, 1024),
    Shape(100, 256, 256, 256),
    Shape(100, 17, 101, 101),
    Shape(100, 32, 250, 250),
    Shape(100, 1, 128, 128, bidirectional=True),
    Shape(100, 32, 128, 128, num_layers=2),
    Shape(100, 32, 128, 128, bidirectional=True),
    Shape(100, 32, 128, 128, packed=True),
    Shape(10000, 1, 64, 64),
    Shape(100000, 1, 32, 32),
)

FORWARD = "forward"
TRAINING = "forward+backward"
MODES = (FORWARD, TRAINING)
