"""What an accelerator would do with a training step, found out without one (`pretend_device`)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from training import pretend_device

TESTS = Path(__file__).parents[1]


def run(*cases: str) -> dict[str, Any]:
    if not pretend_device.available():
        pytest.skip("this torch has no devices written in Python")
    path = os.pathsep.join(map(str, (TESTS, TESTS.parent)))
    done = subprocess.run(
        [sys.executable, "-m", "training.pretend_steps", *cases],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def check(steps: dict[str, Any]) -> None:
    """Masks, losses, update and average wait for nothing: only who reads the numbers, once.

    And blocks that are filled up, in whole rows, train as those a CPU cuts short.
    """
    for case, step in steps.items():
        assert step["waits"] == [], case
        assert len(step["waits_for_numbers"]) == 1, case
        on_device, on_cpu = step["gradient_norms"]
        assert on_device == pytest.approx(on_cpu, rel=1e-5), case
        assert step["weights_apart"] < 1e-4, case


def test_no_algorithm_waits_for_its_device() -> None:
    found = run("reduced")
    assert [line.partition(":")[0] for line in found["known"]] == [
        "aten._local_scalar_dense.default",
        "index with a mask",
        "index that lies on the host",
        "blocking copy",
        "copy to the host",
        "aten.nonzero.default",
    ]
    assert found["mask"] == []
    assert len(found["steps"]) >= 4
    check(found["steps"])


@pytest.mark.slow
def test_no_loss_waits_for_its_device() -> None:
    found = run()
    assert len(found["steps"]) >= 16
    check(found["steps"])
