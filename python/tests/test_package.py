"""The package as installed: one version everywhere, typed, and light to import."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import keybrake

ROOT = Path(__file__).resolve().parents[2]

LOADED_SDKS = """
import keybrake, sys
sdks = {"stripe", "httpx", "requests", "twilio", "resend", "aiohttp"}
print(sorted({name.split(".")[0] for name in sys.modules} & sdks))
"""


def test_the_version_is_the_workspaces() -> None:
    manifest = re.search(r'^version = "(.+)"$', (ROOT / "Cargo.toml").read_text(), re.M)
    assert manifest is not None
    assert keybrake.__version__ == version("keybrake") == manifest[1]


def test_importing_keybrake_imports_no_sdk() -> None:
    command = [sys.executable, "-c", LOADED_SDKS]
    loaded = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert loaded.strip() == "[]"
