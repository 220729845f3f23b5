"""`training.compile`: the same numbers, compiled once."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from speculators.errors import LaunchError
from speculators.modules import compiling
from training.toy import toy_config, toy_trainer

TESTS = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.parametrize("again", ["keep", "recompute"])
@pytest.mark.parametrize("name", ["dflash", "eagle3", "peagle"])
def test_compiled_steps_are_the_same_and_shapes_cost_no_graph(name: str, again: str) -> None:
    path = os.pathsep.join(map(str, (TESTS, TESTS.parent)))
    done = subprocess.run(
        [sys.executable, "-m", "training.compiled_steps", name, again],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    steps = json.loads(done.stdout)
    if isinstance(steps, str):
        pytest.skip(f"nothing can be compiled here: {steps}")
    for step in steps:
        assert step["losses"][1] == pytest.approx(step["losses"][0], rel=1e-6)
        assert step["apart"] < 1e-5
    assert len({step["graphs"] for step in steps}) == 1
    assert steps[0]["graphs"] > 0


def test_without_a_compiler_it_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "speculators.training.trainer.compiler_problem", lambda device: "InvalidCxxCompiler: none"
    )
    with pytest.raises(LaunchError) as error:
        toy_trainer(tmp_path, toy_config(tmp_path, compile=True))
    assert str(error.value) == (
        "training.compile=true: nothing can be compiled for cpu here (InvalidCxxCompiler: none); "
        "install a C++ compiler (g++ or clang++, or name one in CXX), or set training.compile=false"
    )


def test_a_compiler_that_is_not_there_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*args: object, **options: object) -> None:
        raise RuntimeError("no compiler\nand more")

    monkeypatch.setattr(compiling, "compile_counted", missing)
    assert compiling.compiler_problem(torch.device("cpu")) == "RuntimeError: no compiler"


def test_nothing_is_compiled_unless_asked_for() -> None:
    calls: list[int] = []

    @compiling.region
    def twice(x: int) -> int:
        calls.append(x)
        return 2 * x

    before = compiling.num_graphs()
    assert twice(3) == 6
    assert (calls, compiling.num_graphs()) == ([3], before)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method`:DeprecationWarning")
def test_a_pass_that_fails_on_gpus_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    settings: Any = importlib.import_module("torch._inductor.config")
    if not hasattr(settings.triton, "mix_order_reduction"):
        pytest.skip("this torch has no such pass")
    seen: list[bool] = []

    def inner(graph: Any, inputs: Any, **options: Any) -> Any:
        seen.append(settings.triton.mix_order_reduction)
        return functorch.make_boxed_func(graph.forward)

    functorch: Any = importlib.import_module("functorch.compile")
    fx: Any = importlib.import_module("torch._inductor.compile_fx")
    backend = partial(fx.compile_fx, inner_compile=inner)
    dynamo: Any = importlib.import_module("torch._dynamo")
    monkeypatch.setattr(dynamo, "lookup_backend", lambda name: backend)
    weight = torch.ones(3, requires_grad=True)
    compiling.compile_counted(torch.sin)(weight).sum().backward()
    assert seen == [False, False]  # forward and backward pass
