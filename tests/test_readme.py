"""The commands that the documents show are run, and must print what the documents promise.

Every ```console block is run, in order, in one folder for each document. `$ command` is run and must
succeed; the lines under it must appear in its output, in that order, where `...` stands for anything.
A block of another language whose first line is `# NAME` is first written to the file of that name.
`TRIP` and `DATA` stand for a recorded trip and the folder of recordings. A block under a comment
`<!-- not run: reason -->` is left out, for that reason.
"""

from __future__ import annotations

import functools
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

REPOSITORY = Path(__file__).parents[1]
DATA = Path(os.environ.get("FUSEDGE_DATA", REPOSITORY.parent / "shared/data")).resolve()
DOCUMENTS = [
    REPOSITORY / "README.md",
    REPOSITORY / "CONTRIBUTING.md",
    *sorted(REPOSITORY.glob("docs/**/*.md")),
]
TIMEOUT_S = 300
_BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<reason>.+?) -->\n\s*)?^```(?P<language>\w*)\n(?P<body>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


class Block(NamedTuple):
    document: Path
    line: int
    language: str
    body: str
    reason: str | None


def blocks(document: Path, text: str) -> list[Block]:
    """The fenced blocks of a document."""
    return [
        Block(document, text[: m.start("body")].count("\n"), m["language"], m["body"], m["reason"])
        for m in _BLOCK.finditer(text)
    ]


def commands(body: str) -> list[tuple[str, list[str]]]:
    """The commands of a console block, each with the lines of output that it promises."""
    found: list[tuple[str, list[str]]] = []
    for line in body.replace("\\\n", " ").splitlines():
        if line.startswith("$ "):
            found.append((line[2:], []))
        elif line.strip() not in ("", "..."):
            assert found, f"output before the first `$ ` command: {line}"
            found[-1][1].append(line)
    return found


def first_unmet(promised: list[str], output: str) -> str | None:
    """The first promised line that the output lacks; blanks count as one."""
    printed = iter([" ".join(line.split()) for line in output.splitlines()])
    for line in promised:
        pattern = ".*".join(re.escape(" ".join(part.split())) for part in line.split("..."))
        if not any(re.fullmatch(pattern.replace(".*", r"\s?.*\s?"), text) for text in printed):
            return line
    return None


def with_recordings(command: str) -> str:
    """The command with TRIP and DATA replaced; skips the test where there are no recordings."""
    if not re.search(r"\b(TRIP|DATA)\b", command):
        return command
    trips = sorted(DATA.glob("driving/uah-driveset/D*/*SECONDARY"))
    if not trips:
        pytest.skip(f"no recordings in {DATA} (set FUSEDGE_DATA)")
    places = {"TRIP": trips[0], "DATA": DATA}
    return re.sub(r"\b(TRIP|DATA)\b", lambda m: shlex.quote(str(places[m[0]])), command)


ALL = [block for file in DOCUMENTS for block in blocks(file, file.read_text("utf-8"))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """One folder for each document, so that a block can use what an earlier one has written."""

    @functools.cache
    def make(file: Path) -> Path:
        made = tmp_path_factory.mktemp(file.stem)
        for block in ALL:
            name = re.match(r"# ([\w.-]+\.\w+)\n", block.body)
            if block.document == file and block.language != "console" and name:
                (made / name[1]).write_text(block.body, "utf-8")
        return made

    return make


@pytest.mark.parametrize(
    "block",
    [
        pytest.param(
            block,
            id=f"{block.document.name}:{block.line}",
            marks=[pytest.mark.skip(reason=block.reason)] if block.reason else [],
        )
        for block in ALL
        if block.language == "console"
    ],
)
def test_the_block_does_what_it_shows(block: Block, folder: Callable[[Path], Path]) -> None:
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "COLUMNS": "120",
        "NO_COLOR": "1",
        "TERM": "dumb",
    }
    for command, promised in commands(block.body):
        done = subprocess.run(
            ["bash", "-c", with_recordings(command)],
            cwd=folder(block.document),
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}"
        unmet = first_unmet(promised, done.stdout)
        assert unmet is None, f"{command}\ndid not print\n{unmet}\nbut\n{done.stdout}"


def links(text: str) -> list[str]:
    """The files of the repository that a document leads to, without the place within them."""
    found = re.findall(r"\]\(<?([^)\s>]+)", re.sub(r"`[^`]*`", "", _BLOCK.sub("", text)))
    return [link.partition("#")[0] for link in found if not re.match(r"[a-z]+:|#", link)]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_what_is_there(document: Path) -> None:
    given = links(document.read_text("utf-8"))
    assert not [link for link in given if not (document.parent / link).exists()]


def test_links_into_the_repository_are_found() -> None:
    text = (
        "[a](b.md), ![c](d/e.png)\n[f](g.md#h) [i](https://j) [k](#l) `m[0](n)`\n```\n[o](p)\n```\n"
    )
    assert links(text) == ["b.md", "d/e.png", "g.md"]


def test_commands_install_from_the_clone() -> None:
    shown = [command for b in ALL if b.language == "console" for command, _ in commands(b.body)]
    installing = [command for command in shown if re.search(r"\bpip install\b", command)]
    assert installing and not [c for c in installing if re.search(r"\bfusedge\b", c)]


def test_commands_are_shown_in_console_blocks_only() -> None:
    other = [b for b in ALL if b.language in ("bash", "sh", "shell", "zsh")]
    assert not [f"{b.document.name}:{b.line}" for b in other], "write ```console, so that it is run"


def test_blocks_are_found_with_their_reason() -> None:
    text = "a\n<!-- not run: takes an hour -->\n```console\n$ x\n```\n```python\n1\n```\n"
    first, second = blocks(Path("d.md"), text)
    assert (first.reason, first.body, first.line) == ("takes an hour", "$ x\n", 3)
    assert (second.reason, second.language) == (None, "python")


def test_commands_and_promises_are_told_apart() -> None:
    body = "$ a \\\n  -b\none\n...\ntwo\n\n$ c\n"
    assert commands(body) == [("a    -b", ["one", "two"]), ("c", [])]


@pytest.mark.parametrize(
    ("promised", "met"),
    [
        (["alpha", "gamma 3"], True),
        (["gamma 3", "alpha"], False),
        (["be...ta"], True),
        (["gamma ..."], True),
        (["... 3"], True),
        (["gam"], False),
        (["g.mma 3"], False),
        ([], True),
    ],
)
def test_promises_are_matched_in_order(promised: list[str], met: bool) -> None:
    output = "alpha\nbe 12 ta\n  gamma    3\n"
    assert (first_unmet(promised, output) is None) == met
