"""The benchmark that kills a run, with fewer kills."""

import json
import os
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_three_kills_lose_nothing(root):
    words = [sys.executable, str(root / "benchmarks" / "kill_resume.py"), "--kills", "3"]
    environment = {**os.environ, "XLA_FLAGS": "", "PYTHONPATH": str(root)}
    done = subprocess.run(
        [*words, "--steps", "1000"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (line,) = done.stdout.splitlines()
    found = json.loads(line)
    assert found["kills"] == 3 and found["equal"] and found["logged_once"]
    assert {moment["phase"] for moment in found["moments"]} == {"startup", "checkpoint", "training"}
