"""The examples, run as a user runs them."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
PNG = b"\x89PNG\r\n\x1a\n"
# Seconds of work, on whatever machine.
SMALL = ["--hidden-size=16", "--seq-length=12", "--batch-size=4", "--steps=12", "--layers=2", "--seed=3"]


def run(name: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """An example as a process of its own, with this checkout's rnn_ext."""
    path = os.pathsep.join([str(EXAMPLES.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, str(EXAMPLES / name), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": path, "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        encoding="utf-8",
        timeout=120,
    )


def assert_one_sentence(result: subprocess.CompletedProcess[str], *parts: str) -> None:
    """The program ended as one does that was called wrongly: exit code 2, and one line that says why."""
    assert result.returncode == 2, result.stderr
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("char_rnn.py: ")
    for part in parts:
        assert part in lines[0]


@pytest.fixture(scope="module")
def char_rnn() -> ModuleType:
    """The example as a module, for what a run of it cannot show."""
    spec = importlib.util.spec_from_file_location("char_rnn", EXAMPLES / "char_rnn.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up.
    sys.modules["char_rnn"] = module
    spec.loader.exec_module(module)
    return module


def test_sequence() -> None:
    result = run("rnn_sequence.py")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert re.search(r"output +\(10, 3, 64\)", result.stdout)
    assert re.search(r"h_n +\(2, 3, 64\)", result.stdout)


def test_cells() -> None:
    result = run("rnn_cells.py")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert re.search(r"output +\(8, 3, 16\)", result.stdout)


def test_char_rnn_on_the_text_that_python_ships(tmp_path: Path) -> None:
    result = run("char_rnn.py", *SMALL, "--threads=1", "--out", tmp_path / "new" / "folder")
    assert result.returncode == 0, result.stderr
    assert re.search(r"torch\.nn\.RNN +\d\.\d{4} +[\d,]+\n", result.stdout)
    assert re.search(r"rnn_ext\.RNN +\d\.\d{4} +[\d,]+\n", result.stdout)
    assert re.search(r"speed ratio: \d+\.\d\d ", result.stdout)
    assert "a sample of the rnn_ext model" in result.stdout
    assert "100%" in result.stderr  # the progress bar
    picture = (tmp_path / "new" / "folder" / "char_rnn.png").read_bytes()
    assert picture.startswith(PNG)
    assert len(picture) > 10_000


def test_char_rnn_on_a_text_of_ones_own(tmp_path: Path) -> None:
    """As short as may be, so that the streams begin anew at every step; and not of ASCII characters."""
    text = tmp_path / "Grüße.txt"
    text.write_text("Ελλάδα\n" * 6 + "Дом\n" * 3 + "ab", encoding="utf-8")
    assert len(text.read_text(encoding="utf-8")) >= 4 * (12 + 1)
    result = run("char_rnn.py", *SMALL, "--data", text, "--out", tmp_path)
    assert result.returncode == 0, result.stderr
    assert "Grüße.txt: 56 characters, 11 different ones" in result.stdout
    assert (tmp_path / "char_rnn.png").read_bytes().startswith(PNG)


def test_help() -> None:
    result = run("char_rnn.py", "--help")
    assert result.returncode == 0
    for option in ("hidden-size", "seq-length", "batch-size", "steps", "layers", "device", "threads", "seed", "data"):
        assert f"--{option} " in result.stdout


def test_missing_file(tmp_path: Path) -> None:
    assert_one_sentence(run("char_rnn.py", "--data", tmp_path / "absent.txt"), "absent.txt does not exist")


def test_empty_file(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    assert_one_sentence(run("char_rnn.py", "--data", tmp_path / "empty.txt"), "empty.txt is empty")


def test_short_file(tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("x" * 51)
    result = run("char_rnn.py", *SMALL, "--data", tmp_path / "short.txt", "--out", tmp_path)
    assert_one_sentence(result, "short.txt has 51 characters, too few", "together 52", "--batch-size")


def test_directory(tmp_path: Path) -> None:
    assert_one_sentence(run("char_rnn.py", "--data", tmp_path), "is a directory")


def test_undecodable_file(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes(b"gr\xfc\xdfe " * 100)
    assert_one_sentence(run("char_rnn.py", "--data", tmp_path / "latin.txt"), "not UTF-8 text", "byte 2")


def test_out_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert_one_sentence(run("char_rnn.py", *SMALL, "--out", tmp_path / "file"), "--out", "File exists")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ("--hidden-size 0", ("--hidden-size", "from 1 on", "'0'")),
        ("--steps -5", ("--steps", "from 1 on", "'-5'")),
        ("--batch-size 1.5", ("--batch-size", "from 1 on", "'1.5'")),
        ("--seq-length many", ("--seq-length", "from 1 on", "'many'")),
        ("--layers nan", ("--layers", "from 1 on", "'nan'")),
        ("--threads 0", ("--threads", "from 1 on", "'0'")),
        ("--threads 1000000", ("--threads 1000000", "cores")),
        ("--seed -1", ("--seed", "from 0", "'-1'")),
        ("--device nowhere", ("--device nowhere cannot be used",)),
        ("--unknown 1", ("--unknown",)),
    ],
)
def test_invalid_arguments(
    char_rnn: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    arguments: str,
    parts: tuple[str, ...],
) -> None:
    """In this process, as a start takes seconds, and by the same way as from the command line."""
    monkeypatch.setattr(sys, "argv", ["char_rnn.py", *SMALL, "--out", str(tmp_path), *arguments.split()])
    with pytest.raises(SystemExit) as end:
        char_rnn.main()
    output = capfd.readouterr()
    assert_one_sentence(subprocess.CompletedProcess([], end.value.code, output.out, output.err), *parts)


def test_disagreeing_trainings_are_told_apart(char_rnn: ModuleType) -> None:
    steps = range(200)
    theirs = [1.5 + 3 / (1 + step) for step in steps]

    def changed(by: float, at: int) -> list[float]:
        return [loss + by if step >= at else loss for step, loss in zip(steps, theirs, strict=True)]

    def differ(ours: list[float], control: float = 1e-3) -> str | None:
        return char_rnn.disagreement(theirs, ours, lambda: changed(control, 50))

    assert differ(theirs) is None
    assert differ(changed(1e-6, 0)) is None
    # Late in training, single steps are apart and their mean is not.
    noisy = [loss + (0.1 if step % 2 else -0.1) * (step > 150) for step, loss in zip(steps, theirs, strict=True)]
    assert differ(noisy) is None
    assert "first 3 steps" in differ(changed(1e-2, 1))
    assert "averaged" in differ(changed(0.2, 100))
    # Nothing is wrong where nn.RNN is as far from itself.
    assert differ(changed(0.2, 100), control=0.1) is None
    assert "first 3 steps" in differ(changed(float("nan"), 0))
    assert "averaged" in differ(changed(float("nan"), 100))


def test_disagreement_ends_the_program_with_1(
    char_rnn: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A layer that computes something else than nn.RNN does."""
    import torch

    class Wrong(torch.nn.RNN):
        def forward(self, input, hx=None):  # type: ignore[no-untyped-def]
            return super().forward(0.9 * input, hx)

    monkeypatch.setattr(char_rnn.rnn_ext, "RNN", Wrong)
    monkeypatch.setattr(sys, "argv", ["char_rnn.py", *SMALL, "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as end:
        char_rnn.main()
    assert end.value.code == 1
    assert "char_rnn.py: the two trainings do not agree: " in capfd.readouterr().err.splitlines()[-1]


def test_without_steps_time_is_limited(
    char_rnn: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(char_rnn, "SECONDS", 0.0)
    arguments = [a for a in SMALL if not a.startswith("--steps")]
    monkeypatch.setattr(sys, "argv", ["char_rnn.py", *arguments, "--out", str(tmp_path)])
    char_rnn.main()
    assert "ended after 10 steps, as 0 s are over" in capfd.readouterr().out
