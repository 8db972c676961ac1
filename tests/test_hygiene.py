"""What must never be committed, and what a wheel must carry."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import tomli

REPOSITORY = Path(__file__).parents[1]
TEXT = {".py", ".md", ".toml", ".txt", ".json", ".yml", ".yaml", ".sh", ".cfg", ""}
EVERYWHERE = {
    "a path of a developer's machine": r"(?<![\w.}])/(?:root|work|Users/\w+|home/\w+|opt/pypi)\b",
    "a package index": r"--(?:extra-)?index[-]url|--find[-]links|(?:pypi|pythonhosted|npmjs)\.(?:org|com)",
    "a secret": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "an unresolved merge": r"^(?:<{7}|>{7}) ",
}
# A pickle runs code when it is read; tests may write one to see it refused.
IN_THE_PACKAGE = {
    "pickle": r"^\s*(?:import|from) (?:pickle|cloudpickle|dill|shelve|marshal)\b|allow_pickle=True",
    "torch.load of a pickle": r"\btorch\.load\((?![^)]*weights_only=True)",
}


def committed() -> list[Path]:
    """The files that git has or would add."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    names = [name for name in done.stdout.split("\0") if name]
    return [REPOSITORY / name for name in names if (REPOSITORY / name).is_file()]


def offences(text: str, rules: dict[str, str]) -> list[str]:
    """`what: line` for each line of `text` that breaks one of the rules."""
    return [
        f"{what}: {line.strip()[:120]}"
        for what, pattern in rules.items()
        for line in text.splitlines()
        if re.search(pattern, line)
    ]


def test_committed_files_are_clean() -> None:
    found = []
    for file in committed():
        if file.suffix not in TEXT:
            continue
        name = file.relative_to(REPOSITORY)
        in_package = file.suffix == ".py" and name.parts[0] not in ("tests", "benchmarks")
        rules = EVERYWHERE | (IN_THE_PACKAGE if in_package else {})
        found += [f"{name}: {offence}" for offence in offences(file.read_text("utf-8"), rules)]
    assert not found, "\n".join(found)


def test_the_rules_find_what_they_are_for() -> None:
    bad = ["cd /ro" + "ot/x", "--extra-index" + "-url x", "import pickle", "torch.load(path)"]
    for line in bad:
        assert offences(line, EVERYWHERE | IN_THE_PACKAGE), line
    good = ["cd ./work/x", "torch.load(path, weights_only=True)", "the /rooted tree", "pypi.tsv"]
    for line in good:
        assert not offences(line, EVERYWHERE | IN_THE_PACKAGE), line


def test_no_committed_file_is_large() -> None:
    large = [str(file) for file in committed() if file.stat().st_size > 5 << 20]
    assert not large, "a clone stays small; put data beside the project"


def test_every_package_is_in_the_wheel() -> None:
    setup = tomli.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["tool"]
    listed = set(setup["setuptools"]["packages"])
    roots = setup["importlinter"]["root_packages"]
    present = {
        ".".join(file.relative_to(REPOSITORY).with_suffix("").parts[:-1])
        for root in roots
        for file in REPOSITORY.glob(f"{root.removeprefix('fusedge.')}/**/*.py")
    }
    assert {f"fusedge.{name}" for name in present} <= listed
    assert {".".join(name.split(".")[:2]) for name in listed} == set(roots)
