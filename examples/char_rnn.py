"""A character-level language model, trained twice from the same seed: with torch.nn.RNN and with rnn_ext.RNN.

The model reads text one character at a time and gives, at each, a distribution over the next one:

    x_t = embedding of character t
    h_t = tanh(U x_t + W h_{t-1} + b)        one such layer upon another
    o_t = softmax(V h_t + c)                 loss: the cross-entropy of o_t and character t + 1

The two trainings take turns, see the same text and must agree. Shown are their losses and their speed, and a sample of
text that the rnn_ext model writes. The text is Python's own reference documentation, or a file of yours:

    python examples/char_rnn.py --data FILE
"""

from __future__ import annotations

import argparse
import copy
import importlib
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn
from tqdm import tqdm

import rnn_ext

LEARNING_RATE = 4e-3
# Gradients of an Elman RNN explode now and then; one such step would undo many.
CLIP_NORM = 1.0
# The trainings take turns after so many steps. Other load on a machine comes and goes in seconds, so that turns of a
# fraction of a second let it hit both alike; and against them the clock and a cold cache count for nothing.
BLOCK = 10

# How far the trainings may be apart. The kernels add the same numbers in another order than PyTorch's, so that from
# equal weights the losses differ by float32 rounding, 1e-7. Training then multiplies any difference, whatever it came
# from. Measured with the default sizes, several seeds: 5e-7 after 20 steps, at most 5e-3 after 500, and 1e-3 averaged
# over 25 steps. Deep and wide models train less smoothly: with 4 layers of 256, 2e-5 after 5 steps, 0.1 after 200 and
# 0.04 averaged; with 5 layers of 384 the curves part altogether, and so do those of nn.RNN and nn.RNN, started one
# rounding apart. Therefore:
# 1. The first steps must agree closely. A wrong gradient shows there, as Adam's first step moves every weight by the
#    learning rate in the direction of the gradient's sign, and the loss by some tenths.
EARLY_STEPS, EARLY_TOLERANCE = 3, 1e-3
# 2. The averaged curves must agree; where they do not, a control is trained: nn.RNN, started one rounding apart. Its
#    distance to nn.RNN is one draw of something random, hence the factor.
SMOOTHING, SMOOTHED_TOLERANCE, CONTROL_RATIO = 25, 0.1, 5.0
# 3. For the weights after training, the gradients of one step are judged by float64: relative error of all of them.
#    Rounding gives 1e-6 for both; where a long memory amplifies it, nn.RNN's own error is the measure.
GRADIENT_TOLERANCE, GRADIENT_RATIO = 1e-4, 10.0

# Without --steps: 500, some fifteen seconds on two cores, but no new block begins after so many seconds. On cores that
# other processes keep busy, nn.RNN's many short parallel regions may take minutes.
STEPS, SECONDS = 500, 90.0

# The third quartile of the speed ratio over the first. On an idle machine 1.05 to 1.1, beside another busy process per
# core 1.3 to 5; from this on the ratio deserves a note.
STEADY = 1.2

TEMPERATURE = 0.7
SAMPLE_LENGTH = 400
PROMPT_LENGTH = 20


class CharModel(nn.Module):
    """Embedding, recurrent layers, and for each time step the logits of the next character."""

    def __init__(self, rnn_class: Callable[..., nn.Module], characters: int, hidden_size: int, layers: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(characters, hidden_size)
        self.rnn = rnn_class(hidden_size, hidden_size, layers)
        self.head = nn.Linear(hidden_size, characters)

    def forward(self, ids: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """``(T, B)`` character numbers and the state before, to ``(T, B, characters)`` logits and the state after."""
        h, state = self.rnn(self.embedding(ids), state)
        return self.head(h), state


@dataclass
class Text:
    """A text as B parallel streams of character numbers, read in chunks of T."""

    characters: str  # number i stands for characters[i]
    streams: Tensor  # (length of a stream, B)
    seq_length: int

    @property
    def chunk_size(self) -> int:
        return self.seq_length * self.streams.shape[1]

    def chunk(self, step: int) -> tuple[Tensor, Tensor, bool]:
        """Inputs and targets, both ``(T, B)``, and whether the streams begin anew."""
        chunks = (len(self.streams) - 1) // self.seq_length
        start = step % chunks * self.seq_length
        end = start + self.seq_length
        return self.streams[start:end], self.streams[start + 1 : end + 1], start == 0


@dataclass
class Training:
    """One model, its optimiser, and what is measured of it."""

    name: str
    model: CharModel
    state: Tensor | None = None
    losses: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)  # characters/s of each block

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=LEARNING_RATE)

    def gradients(self, text: Text, step: int) -> Tensor:
        """The mean cross-entropy of a chunk; its gradients are in the parameters then."""
        inputs, targets, begins = text.chunk(step)
        logits, state = self.model(inputs, None if begins else self.state)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        self.optimizer.zero_grad()
        loss.backward()
        # The next chunk goes on from this state, and backpropagation through time ends at it.
        self.state = state.detach()
        return loss.detach()

    def train(self, text: Text, steps: Sequence[int]) -> None:
        """A block of steps, timed."""
        start = time.perf_counter()
        for step in steps:
            loss = self.gradients(text, step)
            nn.utils.clip_grad_norm_(self.model.parameters(), CLIP_NORM)
            self.optimizer.step()
            # Also waits for the device.
            self.losses.append(loss.item())
        self.rates.append(text.chunk_size * len(steps) / (time.perf_counter() - start))

    @property
    def rate(self) -> float:
        return statistics.median(self.rates)

    @property
    def final_loss(self) -> float:
        return statistics.fmean(self.losses[-SMOOTHING:])


def train_in_turns(trainings: Sequence[Training], text: Text, steps: int, seconds: float) -> None:
    """Trains all with the same chunks, in blocks; who is first alternates. Ends after ``seconds``."""
    for training in trainings:
        # The first call of anything pays for memory and threads.
        training.gradients(text, 0)
        training.state = None
    with tqdm(total=steps, unit="step", desc=" and ".join(t.name for t in trainings)) as bar:
        end = time.perf_counter() + seconds
        for first in range(0, steps, BLOCK):
            if first > 0 and time.perf_counter() > end:
                break
            block = range(first, min(first + BLOCK, steps))
            order = trainings if first // BLOCK % 2 == 0 else trainings[::-1]
            for training in order:
                training.train(text, block)
            bar.set_postfix(loss=" ".join(f"{t.losses[-1]:.3f}" for t in trainings))
            bar.update(len(block))


def smoothed(losses: Iterable[float]) -> np.ndarray:
    """The mean of each ``SMOOTHING`` successive losses."""
    values = np.asarray(list(losses))
    window = min(SMOOTHING, len(values))
    return np.convolve(values, np.full(window, 1 / window), "valid")


def smoothed_difference(theirs: Sequence[float], ours: Sequence[float]) -> float:
    return float(np.abs(smoothed(ours) - smoothed(theirs)).max())


def disagreement(theirs: Sequence[float], ours: Sequence[float], control: Callable[[], Sequence[float]]) -> str | None:
    """A sentence that says how two loss curves differ by more than rounding explains, or None.

    ``control()`` trains nn.RNN from weights one rounding apart and is the curve of that.
    """
    early = np.abs(np.subtract(ours, theirs))[:EARLY_STEPS].max()
    late = smoothed_difference(theirs, ours)
    # Comparisons are such that NaN fails.
    if not early <= EARLY_TOLERANCE:
        return f"within the first {EARLY_STEPS} steps the losses differ by {early:.1e}, allowed are {EARLY_TOLERANCE}"
    if not late <= SMOOTHED_TOLERANCE:
        inherent = smoothed_difference(theirs, control())
        if not late <= CONTROL_RATIO * inherent:
            return (
                f"the averaged loss curves differ by {late:.1e}, and those of two trainings of nn.RNN, started one "
                f"rounding apart, by {inherent:.1e}"
            )
    return None


def gradient_errors(theirs: Training, ours: Training, text: Text) -> tuple[float, float]:
    """Errors, relative to float64, of the gradients that nn.RNN and rnn_ext find for ``ours``'s weights."""
    judged, judge = copy.deepcopy(theirs.model), copy.deepcopy(theirs.model).double()
    found = []
    for model in (judge, judged, ours.model):
        # The parameters have the same names and shapes in both packages.
        model.load_state_dict(ours.model.state_dict())
        Training("", model).gradients(text, 0)
        found.append(torch.cat([p.grad.flatten().double() for p in model.parameters()]))
    exact = found[0]
    theirs_error, ours_error = ((g - exact).norm().item() / exact.norm().item() for g in found[1:])
    return theirs_error, ours_error


@torch.no_grad()
def sample(model: CharModel, text: Text, prompt: str, length: int, seed: int) -> str:
    """Text that goes on from a prompt. The state is carried along, so that every character costs one step."""
    device = text.streams.device
    generator = torch.Generator().manual_seed(seed)
    written = [text.characters.index(c) for c in prompt]
    logits, state = model(torch.tensor(written, device=device).unsqueeze(1), None)
    for _ in range(length):
        odds = (logits[-1, 0].cpu() / TEMPERATURE).softmax(0)
        written.append(int(torch.multinomial(odds, 1, generator=generator)))
        logits, state = model(torch.tensor([[written[-1]]], device=device), state)
    return "".join(text.characters[i] for i in written)


COLORS = {"torch.nn.RNN": "#9aa5b1", "rnn_ext.RNN": "#c2410c"}


def draw(theirs: Training, ours: Training, ratio: float, setting: str, path: Path) -> None:
    """Loss curves over each other, their difference, and the throughput, as one picture."""
    figure = Figure(figsize=(12, 6.5), layout="constrained")
    figure.suptitle(f"Character-level language model: {setting}", fontsize=11)
    axes = figure.subplot_mosaic(
        [["loss", "rate"], ["difference", "rate"]], width_ratios=[2.2, 1], height_ratios=[3, 1]
    )
    steps = np.arange(1, len(ours.losses) + 1)
    draw_losses(axes["loss"], steps, theirs, ours)
    draw_difference(axes["difference"], steps, theirs, ours)
    draw_rates(axes["rate"], theirs, ours, ratio)
    figure.savefig(path, dpi=110)


def draw_losses(axes: Axes, steps: np.ndarray, theirs: Training, ours: Training) -> None:
    axes.plot(steps, theirs.losses, color=COLORS[theirs.name], lw=5, label=theirs.name, solid_capstyle="round")
    axes.plot(steps, ours.losses, color=COLORS[ours.name], lw=1.2, label=ours.name)
    axes.set(
        title="Loss, same seed and same text", ylabel="cross-entropy (nats per character)", xlim=(1, max(2, len(steps)))
    )
    axes.tick_params(labelbottom=False)
    axes.grid(alpha=0.3)
    axes.legend()


def draw_difference(axes: Axes, steps: np.ndarray, theirs: Training, ours: Training) -> None:
    difference = np.abs(np.subtract(ours.losses, theirs.losses))
    # A difference of exactly zero has no place on this axis; float32 could not show less than this.
    axes.semilogy(steps, np.maximum(difference, 1e-8), ".", ms=3, color="#334155", label="difference of the losses")
    axes.axhline(SMOOTHED_TOLERANCE, color="#334155", lw=1, ls="--", label=f"allowed for the mean of {SMOOTHING} steps")
    axes.set(xlabel="training step", ylabel="nats per character", xlim=(1, max(2, len(steps))), ylim=(5e-9, 20))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="upper left", ncols=2)


def draw_rates(axes: Axes, theirs: Training, ours: Training, ratio: float) -> None:
    for place, training in enumerate((theirs, ours)):
        low, high = middle_half(training.rates)
        whiskers = [[training.rate - low], [high - training.rate]]
        axes.bar(place, training.rate, width=0.6, color=COLORS[training.name], label=training.name)
        axes.errorbar(place, training.rate, whiskers, color="#334155", capsize=6)
        axes.annotate(f"{training.rate:,.0f}", (place, training.rate / 2), ha="center", color="white", weight="bold")
    axes.set(
        title=f"rnn_ext trains {ratio:.2f} times as fast",
        ylabel="throughput (characters/s; median, whiskers: middle half of blocks)",
    )
    axes.set_xticks([0, 1], [theirs.name, ours.name])
    axes.set_ylim(0, 1.12 * max(middle_half(ours.rates)[1], middle_half(theirs.rates)[1]))
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)


def middle_half(values: Sequence[float]) -> tuple[float, float]:
    """The first and the third quartile."""
    low, high = np.quantile(values, [0.25, 0.75])
    return float(low), float(high)


def fail(message: str, code: int = 2) -> NoReturn:
    """Ends the program with one sentence."""
    print(f"char_rnn.py: {message}", file=sys.stderr)
    sys.exit(code)


class Parser(argparse.ArgumentParser):
    """Without the usage in front of an error, so that this is one sentence too."""

    def error(self, message: str) -> NoReturn:
        fail(message)


def positive(text: str) -> int:
    """A whole number from 1 on, for argparse."""
    value = int(text) if text.strip().lstrip("+-").isdecimal() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 on, got '{text}'")
    return value


def seed_number(text: str) -> int:
    """What torch.manual_seed takes, for argparse."""
    if not text.isdecimal() or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 to 2**63 - 1, got '{text}'")
    return int(text)


def parse_arguments() -> argparse.Namespace:
    parser = Parser(description="Trains a character-level language model with torch.nn.RNN and with rnn_ext.RNN.")
    parser.add_argument("--hidden-size", type=positive, default=128, help="units of a layer; default %(default)s")
    parser.add_argument(
        "--seq-length", type=positive, default=128, help="characters of a training sequence; default %(default)s"
    )
    parser.add_argument("--batch-size", type=positive, default=16, help="sequences of a batch; default %(default)s")
    parser.add_argument(
        "--steps", type=positive, help=f"training steps; without it {STEPS}, or as many as {SECONDS:.0f} s allow"
    )
    parser.add_argument("--layers", type=positive, default=2, help="recurrent layers; default %(default)s")
    parser.add_argument("--device", default="cpu", help="of PyTorch, as in torch.device; default %(default)s")
    parser.add_argument("--threads", type=positive, help="PyTorch's threads; without it PyTorch's own choice")
    parser.add_argument(
        "--seed", type=seed_number, default=0, help="of the weights and the sample; default %(default)s"
    )
    parser.add_argument("--data", type=Path, metavar="FILE", help="UTF-8 text; without it Python's documentation")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", default=Path("out"), help="where the picture goes; default %(default)s"
    )
    return parser.parse_args()


def read_text(path: Path | None) -> str:
    """The whole text, or the end of the program."""
    if path is None:
        try:
            topics = importlib.import_module("pydoc_data.topics").topics
        except ImportError:
            fail("this Python has no pydoc_data to train on; give a text with --data FILE")
        return "\n".join(topics.values())
    if path.is_dir():
        fail(f"--data {path} is a directory, not a text file")
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        fail(f"--data {path} does not exist")
    except UnicodeDecodeError as e:
        fail(f"--data {path} is not UTF-8 text: byte {e.start} cannot be decoded")
    except OSError as e:
        fail(f"--data {path} cannot be read: {e.strerror}")
    if not text:
        fail(f"--data {path} is empty")
    return text


def make_streams(raw: str, source: str, batch_size: int, seq_length: int, device: torch.device) -> Text:
    """Cuts a text into streams, or ends the program."""
    needed = batch_size * (seq_length + 1)
    if len(raw) < needed:
        fail(
            f"{source} has {len(raw)} characters, too few for {batch_size} sequences of {seq_length} and a character "
            f"after each to predict, together {needed}; lower --batch-size or --seq-length"
        )
    characters = "".join(sorted(set(raw)))
    number = {c: i for i, c in enumerate(characters)}
    length = len(raw) // batch_size
    ids = torch.tensor([number[c] for c in raw[: length * batch_size]], device=device)
    return Text(characters, ids.view(batch_size, length).t().contiguous(), seq_length)


def usable_device(name: str) -> torch.device:
    """The device, tried out, or the end of the program."""
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    # PyTorch's own errors for this are of many types.
    except Exception as e:
        fail(f"--device {name} cannot be used: {str(e).splitlines()[0]}")
    return device


def main() -> None:
    args = parse_arguments()
    device = usable_device(args.device)
    raw = read_text(args.data)
    source = "Python's reference documentation" if args.data is None else str(args.data)
    text = make_streams(raw, source, args.batch_size, args.seq_length, device)
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        fail(f"--out {args.out} cannot be made a directory: {e.strerror}")
    if not os.access(args.out, os.W_OK):
        fail(f"--out {args.out} cannot be written to")
    if args.threads is not None:
        if args.threads > (os.cpu_count() or 1):
            fail(f"--threads {args.threads} is more than the {os.cpu_count()} cores of this machine")
        torch.set_num_threads(args.threads)

    def build(name: str, rnn_class: Callable[..., nn.Module]) -> Training:
        torch.manual_seed(args.seed)
        try:
            model = CharModel(rnn_class, len(text.characters), args.hidden_size, args.layers).to(device)
        # PyTorch's way to say that there is no memory.
        except RuntimeError:
            fail(f"a model of --layers {args.layers} and --hidden-size {args.hidden_size} does not fit into memory")
        return Training(name, model)

    def control() -> list[float]:
        training = build("nn.RNN, one rounding apart", nn.RNN)
        with torch.no_grad():
            for p in training.model.parameters():
                p.copy_(torch.nextafter(p, torch.full_like(p, torch.inf)))
        train_in_turns([training], text, len(ours.losses), math.inf)
        return training.losses

    theirs, ours = build("torch.nn.RNN", nn.RNN), build("rnn_ext.RNN", rnn_ext.RNN)

    where = f"{torch.get_num_threads()} CPU threads, {rnn_ext.build_info()['isa']}" if device.type == "cpu" else device
    print(f"text      {source}: {len(raw):,} characters, {len(text.characters)} different ones")
    print(
        f"model     {args.layers} RNN layers of {args.hidden_size}, "
        f"{sum(p.numel() for p in ours.model.parameters()):,} parameters"
    )
    steps = args.steps or STEPS
    print(f"training  {steps} steps of {args.batch_size} x {args.seq_length} characters; {where}", flush=True)

    train_in_turns([theirs, ours], text, steps, math.inf if args.steps else SECONDS)
    if len(ours.losses) < steps:
        print(f"          ended after {len(ours.losses)} steps, as {SECONDS:.0f} s are over")
    # Of blocks that were neighbours in time, so that a machine that slows down for a while does not shift it.
    ratios = [b / a for a, b in zip(theirs.rates, ours.rates, strict=True)]
    ratio = statistics.median(ratios)
    errors = gradient_errors(theirs, ours, text)
    difference = np.abs(np.subtract(ours.losses, theirs.losses))

    print(f"\n{'':14}loss (nats/character)   characters/s (median)")
    for training in (theirs, ours):
        print(f"{training.name:14}{training.final_loss:21.4f}{training.rate:24,.0f}")
    low, high = middle_half(ratios)
    print(f"\nspeed ratio: {ratio:.2f} (median of {len(ratios)} pairs of blocks; half of them {low:.2f} to {high:.2f})")
    if high > STEADY * low:
        print(
            "note: the speeds vary as they do where other processes compete for the cores; that slows nn.RNN more, "
            "so that on an idle machine the ratio is smaller"
        )
    print(
        f"loss curves: at most {difference.max():.1e} apart, "
        f"averaged over {SMOOTHING} steps {smoothed_difference(theirs.losses, ours.losses):.1e}"
    )
    print(f"gradients after training, error against float64: nn.RNN {errors[0]:.1e}, rnn_ext {errors[1]:.1e}")

    written = sample(ours.model, text, raw[:PROMPT_LENGTH], SAMPLE_LENGTH, args.seed)
    print(f"\na sample of the rnn_ext model, after the prompt {written[:PROMPT_LENGTH]!r}:\n")
    print("\n".join(f"    {line}" for line in written[PROMPT_LENGTH:].splitlines()))

    picture = args.out / "char_rnn.png"
    shape = f"{args.layers} layers of {args.hidden_size}, batches of {args.batch_size} x {args.seq_length} characters"
    try:
        draw(theirs, ours, ratio, f"{shape}, {where}", picture)
    except OSError as e:
        fail(f"{picture} cannot be written: {e.strerror}")
    print(f"\npicture: {picture}")

    reason = disagreement(theirs.losses, ours.losses, control)
    if reason is None and not errors[1] <= max(GRADIENT_TOLERANCE, GRADIENT_RATIO * errors[0]):
        reason = f"the error of rnn_ext's gradients is {errors[1]:.1e}, that of nn.RNN's {errors[0]:.1e}"
    if reason is not None:
        fail(f"the two trainings do not agree: {reason}", code=1)


if __name__ == "__main__":
    main()
