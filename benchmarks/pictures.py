"""The result as pictures: time per step against H and B, the roofline, and how many times faster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from benchmarks.grid import BATCH_SWEEP, FORWARD, HIDDEN_SWEEP, MODES, SWEEP_BATCHES, SWEEP_HIDDEN, TRAINING, Shape
from benchmarks.limits import Limits
from benchmarks.peers import MODULES, OURS

Result = dict[str, Any]
Rows = dict[tuple[Shape, str], dict[str, Any]]

# Distinguishable without colour, too: each its own marker.
STYLES = dict(
    zip(
        MODULES,
        zip(
            ("#d62728", "#8c564b", "#7f7f7f", "#1f77b4", "#2ca02c", "#9467bd", "#ff7f0e"),
            ("o", "X", "s", "^", "D", "v", "P"),
            strict=True,
        ),
        strict=True,
    )
)
_INK = "#333333"


def _style() -> None:
    plt.rcParams.update(
        {
            "font.size": 11,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.edgecolor": _INK,
            "axes.grid": True,
            "grid.color": "#e6e6e6",
            "axes.axisbelow": True,
            "legend.frameon": False,
            "figure.dpi": 150,
        }
    )


def _rows(result: Result, threads: int) -> Rows:
    return {(Shape(**row["shape"]), row["mode"]): row for row in result["rows"] if row["threads"] == threads}


def _threads(n: int) -> str:
    return "1 thread" if n == 1 else f"{n} threads"


def _draw_sweep(axes: Axes, rows: Rows, shapes: list[Shape], sizes: list[int], mode: str) -> None:
    present = [(size, rows[shape, mode]) for size, shape in zip(sizes, shapes, strict=True) if (shape, mode) in rows]
    for name in reversed(MODULES):
        points = [
            (size, row["peers"][name]["seconds"] / row["shape"]["time"] * 1e6)
            for size, row in present
            if name in row["peers"]
        ]
        if points:
            color, marker = STYLES[name]
            width = 2.6 if name == OURS else 1.3
            axes.plot(*zip(*points, strict=True), color=color, marker=marker, lw=width, ms=5, label=name)
    limit = [(size, row["limit"] / row["shape"]["time"] * 1e6) for size, row in present if "limit" in row]
    if limit:
        axes.plot(*zip(*limit, strict=True), color=_INK, ls=":", lw=1.5, label="limit of the machine")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()


def sweeps(result: Result, threads: int, path: Path) -> bool:
    """Time per step against H and against B, forward above and training below. False if nothing was measured."""
    rows = _rows(result, threads)
    panels = [
        (
            f"B = {b}",
            "H",
            [s for s in HIDDEN_SWEEP if s.batch == b],
            [s.hidden_size for s in HIDDEN_SWEEP if s.batch == b],
        )
        for b in SWEEP_BATCHES
    ]
    panels.append((f"H = {SWEEP_HIDDEN}", "B", list(BATCH_SWEEP), [s.batch for s in BATCH_SWEEP]))
    if not any((shape, mode) in rows for _, _, shapes, _ in panels for shape in shapes for mode in MODES):
        return False
    figure, grid = plt.subplots(len(MODES), len(panels), figsize=(13.5, 7.6), sharey="col", layout="constrained")
    for line, mode in zip(grid, MODES, strict=True):
        for axes, (title, quantity, shapes, sizes) in zip(line, panels, strict=True):
            _draw_sweep(axes, rows, shapes, sizes, mode)
            axes.set_title(f"{mode}, {title}", fontsize=11)
            axes.set_xlabel(quantity)
        line[0].set_ylabel("µs per time step")
    handles: dict[str, Any] = {}
    for axes in grid.flat:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    order = [name for name in (*MODULES, "limit of the machine") if name in handles]
    figure.legend([handles[name] for name in order], order, loc="outside lower center", ncols=len(order))
    figure.suptitle(f"Time per step, {_threads(threads)} (lower is better)", fontweight="bold")
    figure.savefig(path)
    plt.close(figure)
    return True


def roofline(result: Result, threads: int, path: Path) -> bool:
    """The forward primitive's rate against arithmetic per byte of W, under the machine's roofs."""
    rows = [r for r in result["kernels"] if r["threads"] == threads and r["primitive"] == "recurrence"]
    data = result["limits"].get(str(threads))
    if not rows or not data:
        return False
    limits = Limits.from_json(data)
    figure, axes = plt.subplots(figsize=(8, 5.6), layout="constrained")
    # A multiply-add for each of B rows, for each four bytes of W that a step reads.
    x = np.geomspace(0.35, 128, 200)
    axes.axhline(limits.flops / 1e9, color=_INK, lw=2)
    axes.text(130, limits.flops / 1e9 * 1.04, f"GEMM {limits.flops / 1e9:.0f} GFLOP/s", ha="right", va="bottom")
    colors = plt.colormaps["viridis"](np.linspace(0.0, 0.85, len(limits.levels)))
    for level, color in zip(limits.levels, colors, strict=True):
        total = level.bandwidth * threads
        axes.plot(x, np.minimum(x * total, limits.flops) / 1e9, color=color, lw=1.5, ls="--")
        name = f"{level.name} {total / 1e9:.0f} GB/s "
        axes.text(x[0], x[0] * total / 1e9, name, color=color, fontsize=9, ha="right", va="center")
        inside = [r for r in rows if _level(limits, r["hidden"]) == level.name]
        if inside:
            axes.scatter(
                [r["batch"] / 2 for r in inside],
                [r["flops_per_second"] / 1e9 for r in inside],
                s=[18 + 14 * np.log2(r["hidden"] / 32) for r in inside],
                color=color,
                edgecolor="white",
                zorder=3,
                label=f"W in {level.name}: H = " + ", ".join(str(h) for h in sorted({r["hidden"] for r in inside})),
            )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=10)
    axes.set_xlim(0.1, 140)
    axes.set_xlabel("flops per byte of W read in a step (B / 2)")
    axes.set_ylabel("GFLOP/s")
    axes.legend(loc="lower right")
    axes.set_title(f"Roofline of the recurrence alone, {rows[0]['isa']}, {_threads(threads)}", fontweight="bold")
    figure.savefig(path)
    plt.close(figure)
    return True


def _level(limits: Limits, hidden: int) -> str:
    """Where a core's share of W lives."""
    return next(level.name for level in limits.levels if 4.0 * hidden**2 / limits.threads <= level.size)


def ratios(result: Result, threads: int, path: Path) -> bool:
    """How many times faster than the best peer, a bar for each row."""
    rows = _rows(result, threads)
    shapes = [
        shape for shape in dict.fromkeys(s for s, _ in rows) if any("ratio" in rows.get((shape, m), {}) for m in MODES)
    ]
    if not shapes:
        return False
    figure, axes = plt.subplots(figsize=(9.5, 1.6 + 0.34 * len(shapes)), layout="constrained")
    for offset, mode, color in ((-0.2, FORWARD, "#a50f15"), (0.2, TRAINING, "#fc8d59")):
        bars = [(i, rows[s, mode]) for i, s in enumerate(shapes) if "ratio" in rows.get((s, mode), {})]
        for i, row in bars:
            axes.barh(
                i + offset,
                row["ratio"] - 1,
                left=1,
                height=0.38,
                color=color,
                alpha=1.0 if row["ratio"] >= 1 else 0.45,
                xerr=row["ratio"] * row["ratio_spread"],
                error_kw={"lw": 0.8, "ecolor": _INK},
            )
            right = max(row["ratio"], 1.0) * (1 + row["ratio_spread"])
            axes.text(right * 1.02, i + offset, f"{row['ratio']:.2f}  {row['best_peer']}", va="center", fontsize=7.5)
        axes.barh([0], [0], color=color, label=mode)
    axes.axvline(1, color=_INK, lw=1)
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.set_xlim(low, high * 1.6)
    ticks = [t for t in (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50) if low < t < high * 1.6]
    axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axes.minorticks_off()
    axes.set_yticks(range(len(shapes)), [str(shape) for shape in shapes])
    axes.set_ylim(len(shapes) - 0.4, -0.6)
    axes.set_xlabel("times faster than the best peer, which is named at the bar")
    figure.legend(loc="outside lower center", ncols=2)
    axes.set_title(f"rnn_ext and the best of its peers, {_threads(threads)}", fontweight="bold")
    figure.savefig(path)
    plt.close(figure)
    return True


def draw(result: Result, folder: Path) -> list[Path]:
    """Every picture that there are figures for."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    with plt.rc_context():
        _style()
        for threads in sorted(int(n) for n in result["others"]):
            for name, picture in (("time_per_step", sweeps), ("roofline", roofline), ("ratios", ratios)):
                path = folder / f"{name}_{threads}.png"
                if picture(result, threads, path):
                    drawn.append(path)
    return drawn
