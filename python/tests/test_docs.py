"""Every Python example of the documentation runs, in order, against the simulator."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import keybrake
from conftest import POLICY
from keybrake.testing import Simulator

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples" / "python"


def blocks(document: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", (ROOT / document).read_text(), re.S | re.M)


def ran(code: str, environment: dict[str, str], cwd: Path) -> str:
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("document", ["README.md", "python/README.md", "docs/python.md"])
def test_documents(document: str, environment: dict[str, str], tmp_path: Path) -> None:
    found = blocks(document)
    assert found, "no example in it"
    with keybrake.Keybrake(environment["KEYBRAKE_LEDGER"]) as kb:
        # The day of the examples, whose budget this is too.
        token = kb.issue({**POLICY, "timezone": "UTC"}).token
    ran("\n".join(found), {**environment, "KEYBRAKE_TOKEN": token}, tmp_path)


@pytest.mark.parametrize("program", sorted(path.name for path in EXAMPLES.glob("0*.py")))
def test_examples(program: str, environment: dict[str, str], sim: Simulator) -> None:
    command = [sys.executable, "-W", "error", str(EXAMPLES / program)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    expected = {
        "01_stuck_loop.py": ("NOT DONE", 25_000),
        "02_parallel_duplicate.py": ("8 workers, 1 refund", 2000),
        "03_step_replayed_after_crash.py": ("replayed: True", 3000),
        "04_stop_from_second_terminal.py": ("STOPPED by an operator", 2000),
    }
    words, moved = expected[program]
    assert words in done.stdout
    assert sim.moved() == moved
