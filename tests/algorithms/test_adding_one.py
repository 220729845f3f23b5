"""The example of docs/adding_an_algorithm.md, taken out of the page and run as it stands there."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from algorithms import test_every_algorithm as suite
from algorithms.test_overfitting import overfit
from speculators.config import discovery, registry
from speculators.config.composition import compose
from speculators.launch import train

PAGE = Path(__file__).parents[2] / "docs" / "adding_an_algorithm.md"
FILE = re.compile(r"^`(?P<name>\S+/\S+)`\n\n```(?:python|yaml)\n(?P<text>.*?)^```$", re.M | re.S)
NAME = "lookahead"


@pytest.fixture
def _installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Install the example as pip would."""
    files = {found["name"]: found["text"] for found in FILE.finditer(PAGE.read_text())}
    assert len(files) == 3
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "lookahead_drafter" / "__init__.py").touch()
    (tmp_path / "lookahead_drafter" / "conf" / "__init__.py").touch()
    metadata = tmp_path / "lookahead_drafter-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: lookahead-drafter\nVersion: 1.0\n"
    )
    entry = next(line for line in PAGE.read_text().splitlines() if line.startswith("lookahead = "))
    entry = entry.replace('"', "")
    (metadata / "entry_points.txt").write_text(f"[speculators.algorithms]\n{entry}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    caches = (discovery.algorithms, registry.register)
    for cached in caches:
        cached.cache_clear()
    yield
    for cached in caches:
        cached.cache_clear()
    for module in [m for m in sys.modules if m.startswith("lookahead_drafter")]:
        del sys.modules[module]


@pytest.mark.usefixtures("_installed")
def test_example_passes_the_suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for vocabulary in suite.VOCABULARIES:
        suite.test_session_proposes_what_batched_drafting_drafts(NAME, vocabulary, 1)
        suite.test_saved_and_read_back_it_is_equal(
            NAME, vocabulary, tmp_path / f"{len(vocabulary)}"
        )
        suite.test_checkpoint_keeps_to_the_contract(NAME, vocabulary)
    suite.test_a_step_lowers_the_loss(NAME, 1)
    suite.test_initial_loss_is_finite_at_any_depth(NAME)
    suite.test_row_without_starts_still_has_gradients(NAME)
    suite.test_sampling_says_what_it_drew_from(NAME)
    suite.test_nothing_before_a_token_depends_on_it(NAME, 1)
    suite.test_padding_and_order_of_documents_do_not_matter(NAME, 1)
    suite.test_flex_equals_sdpa(NAME, monkeypatch)


@pytest.mark.slow
@pytest.mark.usefixtures("_installed")
def test_example_overfits_one_conversation(tmp_path: Path) -> None:
    overfit(NAME, tmp_path, num_steps=500)


@pytest.mark.slow
@pytest.mark.usefixtures("_installed")
def test_example_trains_with_the_one_command(tmp_path: Path) -> None:
    overrides = [f"speculator={NAME}", "debug=fast", "speculator.draft_vocab_size=null"]
    overrides += [f"output_dir={tmp_path / 'run'}", f"cache_dir={tmp_path / 'cache'}"]
    result = train.run(compose("train", overrides))
    assert result["lossless_prompts"] == result["num_prompts"] == 2
