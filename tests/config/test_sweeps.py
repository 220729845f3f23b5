"""Every file of sweeps/ works as it stands in its own comment, and asks one question."""

from __future__ import annotations

from pathlib import Path

import pytest

from speculators.config.checking import check
from speculators.config.composition import Request, compose_untyped
from speculators.config.folder import file_comment
from speculators.errors import ConfigError

FOLDER = Path(__file__).parents[2] / "sweeps"
QUESTIONS = sorted(FOLDER.glob("*.yaml"))
SEARCH = "search"


@pytest.mark.parametrize("path", QUESTIONS, ids=lambda path: path.stem)
def test_every_sweep_composes_and_varies_something(path: Path) -> None:
    comment = file_comment(path)
    assert f"python train.py --config-dir sweeps --config-name {path.stem}" in comment
    assert "?" in comment.splitlines()[0]
    if path.stem == SEARCH:
        pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    request = Request(path.stem, config_dir=str(FOLDER))
    check(request, needs=("data.path",), decodes=True)
    composition = compose_untyped(request)
    assert composition.multirun
    asked = [key for key in composition.axes if key != "seed"]
    assert len(asked) == 1 or path.stem == SEARCH
    assert all(len(values) > 1 for values in composition.axes.values())


def test_the_questions_of_the_field_are_asked() -> None:
    names = {path.stem for path in QUESTIONS}
    assert names >= {
        *("block_size", "anchors", "layers", "target_layers", "loss", "learning_rate"),
        *("draft_vocabulary", "anchor_strategy"),
    }


def test_runs_of_a_sweep_share_data_prompts_and_states() -> None:
    def config(*overrides: str) -> object:
        composition = compose_untyped(Request("block_size", overrides, config_dir=str(FOLDER)))
        typed = composition.typed()
        assert typed is not None, composition.problems
        return typed.data_seed, typed.data, typed.hidden_states

    one = config("speculator.block_size=4", "seed=0")
    assert config("speculator.block_size=16", "seed=2") == one
    # Another set of layers is another store: states of one cannot serve the other.
    assert config("speculator.block_size=4", "seed=0", "speculator.target_layer_ids=[2]") != one
    shorter = compose_untyped(Request("block_size", ("debug=fast",), config_dir=str(FOLDER)))
    typed = shorter.typed()
    assert typed is not None
    assert typed.training.max_steps == 4


def test_a_search_has_to_go_the_right_way() -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    loss = ("training.best_metric=loss", "sweep.objective=best_value")
    with pytest.raises(ConfigError, match="best_value is to be minimized"):
        check(Request("search", loss, config_dir=str(FOLDER)))
    check(Request("search", (*loss, "hydra.sweeper.direction=minimize"), config_dir=str(FOLDER)))
