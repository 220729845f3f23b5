"""The Python interface: the same stages as the command line, with typed configurations."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import speculators
from speculators.config.schema import Config
from speculators.errors import ConfigError


def tiny(folder: Path, *overrides: str, command: str = "train") -> Config:
    choices = ["debug=fast", "data.regenerate.enabled=false", f"cache_dir={folder / 'cache'}"]
    return speculators.compose(
        *choices, *overrides, command=command, output_dir=folder / f"a {command}"
    )


def test_importing_costs_nothing() -> None:
    heavy = "[name for name in ('torch', 'hydra', 'numpy') if name in sys.modules]"
    code = f"import sys, speculators; print({heavy})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_is_there_and_documented() -> None:
    init = ast.parse(inspect.getsource(speculators))
    block = next(node for node in init.body if isinstance(node, ast.If))
    typed = [alias.name for node in ast.walk(block) if isinstance(node, ast.ImportFrom)
             for alias in node.names]  # fmt: skip
    assert sorted(typed) == sorted(speculators.__all__)
    for name in speculators.__all__:
        found = getattr(speculators, name)
        assert (inspect.getdoc(found) or "").strip(), name
        assert name in dir(speculators)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'tune'"):
        speculators.tune  # noqa: B018


def test_composes_what_the_command_line_composes(tmp_path: Path) -> None:
    config = speculators.compose("speculator.block_size=4", output_dir=tmp_path / "it's here")
    assert config.speculator.name == "dflash"
    assert config.speculator.block_size == 4  # type: ignore[attr-defined]
    assert config.output_dir == str(tmp_path / "it's here")


def test_every_problem_is_named_at_once() -> None:
    with pytest.raises(ConfigError) as raised:
        speculators.compose("speculator.block_sise=4", "optimizer.lr=fast")
    assert len(raised.value.problems) == 2
    with pytest.raises(ConfigError, match="command=tune: no such command: there are train"):
        speculators.compose(command="tune")
    with pytest.raises(ConfigError, match=r"no such command: did you mean train\?"):
        speculators.compose(command="trian")


def test_a_configuration_is_checked_again_when_it_is_used(tmp_path: Path) -> None:
    """It can be changed after it was composed; nothing is written with a wrong one."""
    config = tiny(tmp_path)
    wrong = replace(config, optimizer=replace(config.optimizer, lr=-1.0))
    for stage in (speculators.train, speculators.prepare, speculators.load_verifier):
        with pytest.raises(ConfigError, match=r"optimizer\.lr=-1\.0: "):
            stage(wrong)
    with pytest.raises(ConfigError, match="checkpoint=null: a value is needed"):
        speculators.evaluate(config)
    with pytest.raises(ConfigError, match=r"config is a str: .*speculators\.compose"):
        speculators.train("verifier=tiny")  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_types_are_those_of_the_command_line_also_after_a_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(tmp_path)
    mistyped = replace(
        config,
        seed="x",
        speculator=None,
        optimizer=replace(config.optimizer, lr="fast"),
        data=replace(config.data, bad_rows="keep", path=object()),
        evaluation=replace(config.evaluation, suites={"a": {"path": "x"}}),
    )
    with pytest.raises(ConfigError) as raised:
        speculators.train(mistyped)
    problems = dict(problem.split("=", 1) for problem in raised.value.problems)
    assert problems.pop("data.path").endswith(": must be plain: text, numbers, lists, mappings")
    assert problems == {
        "seed": "x: must be a whole number",
        "speculator": "null: must be of type SpeculatorConfig, as speculators.compose gives",
        "optimizer.lr": "fast: must be a number",
        "data.bad_rows": "keep: must be one of error, drop",
        "evaluation.suites.a": (
            "{'path': 'x'}: must be of type SuiteConfig, as speculators.compose gives"
        ),
    }
    assert not list(tmp_path.iterdir())

    named = replace(config, hidden_states=replace(config.hidden_states, mode="online"))
    with pytest.raises(ConfigError, match="online states need a server"):
        speculators.train(named)

    given: list[Config] = []
    monkeypatch.setattr("speculators.plan.command.run", lambda config, argv: given.append(config))
    changed = replace(
        config,
        output_dir=tmp_path / "${seed}",
        seed="7",
        hidden_states=replace(config.hidden_states, mode="embedded", endpoints=("http://a",)),
    )
    speculators.plan_run(changed)
    states = replace(config.hidden_states, endpoints=["http://a"])
    expected = replace(config, output_dir=f"{tmp_path}/${{seed}}", seed=7, hidden_states=states)
    assert given == [expected]


def test_a_folder_without_a_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds neither resolved"):
        speculators.load_config(tmp_path)
    with pytest.raises(ConfigError, match="nowhere: no such file or folder; give a run's folder"):
        speculators.load_config(tmp_path / "nowhere")


def test_one_drafter_from_conversations_to_tokens(tmp_path: Path) -> None:
    config = tiny(tmp_path)
    data = speculators.prepare(config)
    assert len(data.train) > 0
    result = speculators.train(config)
    assert result["steps"] == 4
    assert speculators.load_config(config.output_dir) == config

    checkpoint = result["checkpoint"]
    assert speculators.load_config(checkpoint) == config
    evaluated = speculators.evaluate(
        tiny(tmp_path, f"checkpoint='{checkpoint}'", command="evaluate")
    )
    assert evaluated["acceptance_length"] == result["acceptance_length"]

    examined = speculators.examine(
        speculators.compose(f"checkpoint='{checkpoint}'", command="doctor")
    )
    assert examined["passed"]
    assert (Path(checkpoint) / "parity.json").exists()

    verifier = speculators.load_verifier(config)
    drafter = speculators.load_drafter(checkpoint, verifier)
    states = torch.randn(3, len(drafter.config.target_layer_ids or ()), verifier.spec.hidden_size)
    proposal = drafter.new_session().propose(states, torch.tensor([5, 6, 7]))
    assert proposal.tokens.shape == (drafter.num_draft_tokens,)
