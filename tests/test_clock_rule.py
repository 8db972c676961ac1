"""The clock rule: runtime/ and devices/ never ask the machine for the time, but in runtime/clock.py.

Ruff applies it (TID251 in pyproject.toml, part of `make lint`); here it is shown to catch what it must.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]


def findings(file: str, code: str) -> str:
    """What the clock rule says about `code`, if it were the content of `file`."""
    command = [
        str(Path(sys.executable).with_name("ruff")),
        "check",
        "--no-cache",
        "--output-format=concise",
        "--ignore-noqa",
        f"--stdin-filename={file}",
        "-",
    ]
    done = subprocess.run(
        command, cwd=REPOSITORY, input=code, capture_output=True, text=True, check=False
    )
    assert done.returncode in (0, 1), done.stderr
    return "\n".join(line for line in done.stdout.splitlines() if "TID251" in line)


@pytest.mark.parametrize("file", ["runtime/x.py", "runtime/sinks/x.py", "devices/capture/x.py"])
@pytest.mark.parametrize(
    "code",
    [
        "import time\ntime.time()\n",
        "import time as t\nt.monotonic_ns()\n",
        "from time import perf_counter as p\np()\n",
        "import time\nwait = time.sleep\n",
        "from datetime import datetime\ndatetime.now()\n",
        "import datetime\ndatetime.date.today()\n",
        "def f():\n    import asyncio\n    return asyncio.sleep(1)\n",
    ],
)
def test_the_machines_time_is_refused(file: str, code: str) -> None:
    assert findings(file, code)


@pytest.mark.parametrize(
    "file",
    ["runtime/clock.py", "devices/capture/child.py", "cli/x.py", "export/x.py", "models/x.py"],
)
def test_elsewhere_it_is_allowed(file: str) -> None:
    assert not findings(file, "import time\ntime.monotonic_ns()\n")


def test_no_file_switches_the_rule_off() -> None:
    sources = [*REPOSITORY.glob("runtime/**/*.py"), *REPOSITORY.glob("devices/**/*.py")]
    assert sources
    assert not [str(file) for file in sources if "TID251" in file.read_text("utf-8")]
