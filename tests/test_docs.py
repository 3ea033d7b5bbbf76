"""The documentation's Python is run: the blocks of a page, one after the other, as one program."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> list[tuple[int, str]]:
    """Each block, and the line where its text begins."""
    text = page.read_text()
    return [(text.count("\n", 0, match.start(1)), match[1]) for match in BLOCK.finditer(text)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p)], ids=lambda p: p.stem)
def test_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # As torchrun sets them, for one process; port 0 is any free one.
    for name, value in {
        "RANK": 0,
        "WORLD_SIZE": 1,
        "LOCAL_RANK": 0,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": 0,
    }.items():
        monkeypatch.setenv(name, str(value))
    torch._dynamo.reset()
    namespace: dict[str, object] = {"__name__": page.stem}
    for line, source in blocks(page):
        # So that a traceback shows the page and its line.
        exec(compile("\n" * line + source, str(page), "exec"), namespace)


def test_every_kind_of_page_has_been_found() -> None:
    found = {page.stem for page in PAGES if blocks(page)}
    assert found >= {"README", "derivatives", "export", "training"}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        assert target.startswith("https://") or (page.parent / target).exists(), target
    # Files of the tree that are named as code.
    for name in re.findall(r"`((?:rnn_ext|tests|csrc|docs|benchmarks)/[\w./]+)`", page.read_text()):
        assert (ROOT / name).exists(), name
