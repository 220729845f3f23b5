"""A start from a drafter of another verifier, on relatives of the tiny one."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from launch.relative import MORE_ROWS, make_relative, shuffled_ids
from speculators.algorithms.base import Drafter, TokenRows
from speculators.algorithms.registry import drafter_class
from speculators.config.composition import compose
from speculators.config.discovery import algorithms
from speculators.config.schema import Config, FloatType, LossWeights
from speculators.conversion.layout import write_model
from speculators.data.types import PackedBatch
from speculators.data.vocabulary import DraftVocabulary
from speculators.errors import CheckpointError, ConfigError
from speculators.launch import train
from speculators.launch.data_stage import prepare_data
from speculators.launch.drafter_stage import Built, build_drafter
from speculators.launch.forecast_stage import StartForecast
from speculators.launch.target_layers import target_layer_ids
from speculators.launch.verifier_stage import Verifier

IDS = shuffled_ids()
TWICE = [layer for i in range(7) for layer in (i, None)]
"""The tiny verifier's seven layers, each followed by one that changes nothing."""
LAYERS = (1, 3, 5)
MASK = 1270
EXACT = "verifier.dtype=float32"
FULL, REDUCED = DraftVocabulary.full(1280), DraftVocabulary(torch.arange(4, 1264, 3), 1280)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("transplant")


@pytest.fixture(scope="module")
def relative(folder: Path) -> Path:
    return make_relative(folder / "relative", IDS, TWICE)


def configured(folder: Path, name: str, *overrides: str) -> Config:
    common = ["debug=fast", "data.regenerate.enabled=false", f"cache_dir={folder / 'cache'}"]
    return compose("train", [*common, f"output_dir={folder / name}", *overrides])


def on(relative: Path) -> list[str]:
    return ["verifier=hf", f"verifier.name_or_path={relative}", "data=tiny", EXACT]


def write_drafter(
    place: Path, name: str, vocabulary: DraftVocabulary = FULL, **changes: Any
) -> Drafter[Any]:
    """Write a drafter of the tiny verifier whose weights are of visible size."""
    verifier, kind = Verifier(compose("train", [])), drafter_class(name)
    schema = algorithms()[name].schema
    known = {field.name for field in dataclasses.fields(schema)}
    values = {"num_layers": 1, "target_layer_ids": list(LAYERS), "mask_token_id": MASK}
    values |= {"draft_vocab_size": len(vocabulary), "markov_rank": 8, "num_draft_tokens": 4}
    values |= {"loss": LossWeights(kl=1.0)}
    settings = schema(**{k: v for k, v in (values | changes).items() if k in known})
    tables, g = verifier.tables(), torch.Generator().manual_seed(1)
    drafter = kind.build(
        kind.resolve(settings, verifier.spec, [MASK]), verifier.spec, vocabulary,
        embed_tokens=tables.embed_tokens, lm_head=tables.lm_head, generator=g,
    )  # fmt: skip
    with torch.no_grad():
        for parameter in drafter.parameters():
            noise = torch.randn(parameter.shape, generator=g)
            parameter.add_(noise * (0.05 if parameter.ndim == 2 else 0.1))
    write_model(place, drafter, FloatType.float32)
    return drafter


def build(config: Config) -> tuple[Built, Verifier]:
    verifier = Verifier(config)
    return build_drafter(config, verifier, prepare_data(config, verifier)), verifier


def answer(verifier: Verifier, tokens: Tensor, layers: tuple[int, ...]) -> PackedBatch:
    """Return a text with the verifier's states; all but the first tokens count as its own."""
    (states,) = verifier.model().capture([tokens], list(layers))
    index = torch.arange(len(tokens))
    aux, last = states.aux.float(), states.last.float()
    return PackedBatch(tokens, index >= 3, index * 0, index, aux, last)


@pytest.mark.parametrize("name", list(algorithms()))
@pytest.mark.parametrize("vocabulary", [FULL, REDUCED], ids=["full", "reduced"])
def test_it_drafts_the_same_text(
    name: str, vocabulary: DraftVocabulary, folder: Path, relative: Path
) -> None:
    """Ids and depth differ, the model is the same: so are the drafts, token by token."""
    place = folder / f"{name}_{len(vocabulary)}"
    own = write_drafter(place, name, vocabulary, train_lm_head=not vocabulary.is_full)
    overrides = [f"speculator={name}", f"speculator.from_pretrained={place}"]
    overrides += ["speculator.draft_vocab_size=null", "speculator.num_layers=1"]
    given = algorithms()[name].schema()
    fixed = {"num_draft_tokens": 4, "markov_rank": 8, "mask_token_id": MASK}
    fixed |= {"train_lm_head": not vocabulary.is_full}
    overrides += [f"speculator.{k}={v}" for k, v in fixed.items() if hasattr(given, k)]
    config = configured(folder, f"{name}_built", *on(relative), *overrides)
    assert target_layer_ids(config, Verifier(config).spec) == (2, 6, 10)
    built, verifier = build(config)
    made, found = built.drafter, built.transplant
    assert found is not None
    assert found.target_layer_ids == ([1, 3, 5], [2, 6, 10])
    assert (found.vocab_sizes, found.matched_tokens) == ((1280, 1280 + MORE_ROWS), 1264)
    assert found.matched_share == 1.0
    shared = IDS[vocabulary.ids[vocabulary.ids < 1264]]
    assert found.drafted_before == int(torch.isin(made.vocabulary.ids, shared).sum())

    tokens = torch.randint(0, 1261, (40,), generator=torch.Generator().manual_seed(2))
    before = answer(Verifier(compose("train", [EXACT])), tokens, LAYERS)
    after = answer(verifier, IDS[tokens], (2, 6, 10))
    torch.testing.assert_close(after.aux, before.aux)
    starts = own.start_candidates(before).nonzero().flatten()
    if vocabulary.is_full:
        drafted = own.draft(before, starts)
        known = drafted < 1264  # rows without a token cannot be matched
        assert float(known.float().mean()) > 0.9
        whole = known.int().cumprod(-1).bool()
        assert torch.equal(made.draft(after, starts)[whole], IDS[drafted][whole])
    here, there = made.trainable_parameters(), own.trainable_parameters()
    assert found.rows.keys() == made.token_rows().keys()
    for weight, kind in made.token_rows().items():
        ids = torch.arange(1280) if kind is TokenRows.vocab else vocabulary.ids
        target = IDS[ids]
        if kind is TokenRows.draft:
            target = made.vocabulary.draft_ids()[target]
        same = (ids < 1264) & (target >= 0)
        assert found.rows[weight] == int(same.sum()) > 0
        assert torch.equal(here[weight][target[same]], there[weight][same])


def test_the_report_says_what_became_of_everything(folder: Path, relative: Path) -> None:
    place = folder / "reported"
    write_drafter(place, "dflash", REDUCED)
    overrides = [f"speculator.from_pretrained={place}", "speculator.num_layers=1"]
    built, _ = build(configured(folder, "report", *on(relative), *overrides))
    assert built.transplant is not None
    report = list(built.transplant.lines())
    counted = built.transplant.drafted_before
    assert report == [
        f"transplant from {place}, a drafter of {Verifier(compose('train', [])).spec.folder}",
        "  layers read: [1, 3, 5] of 7 there, [2, 6, 10] of 14 here",
        "  tokens: 1,264 of 1,280 there stand for one of the 1,344 here; 100.0% of the supervised "
        "tokens",
        f"  draft vocabulary: 420 tokens, {counted} of them among the 420 there",
        f"  mask token: 1270 there, {built.drafter.config.mask_token_id} here",
        "  weights: 14 tensors",
    ]
    assert built.drafter.config.mask_token_id >= 1264


def test_a_run_writes_what_it_came_from_and_what_that_is_worth(
    folder: Path, relative: Path
) -> None:
    place = folder / "source"
    write_drafter(place, "dflash")
    start = [*on(relative), f"speculator.from_pretrained={place}", "speculator.num_layers=1"]
    start += ["evaluation.enabled=false", "doctor.at_start=false", "doctor.at_checkpoints=false"]
    train.run(configured(folder, "plain", *start))
    train.run(configured(folder, "forecast", *start, "speculator.forecast_steps=2"))
    for name in ("plain", "forecast"):
        written = json.loads((folder / name / "transplant.json").read_text())
        assert written["target_layer_ids"] == [[1, 3, 5], [2, 6, 10]]
    found = json.loads((folder / "forecast" / "forecast.json").read_text())
    assert (found["steps"], found["last_step"], found["longest"]) == ([0, 1, 2], 4, 8.0)
    assert found["expected"] == {"started": None, "random": None}  # two validations tell nothing
    assert len(found["started"]) == len(found["random"]) == 3
    assert found["gain"] == found["started"][-1] - found["random"][-1]
    metrics = [(folder / name / "metrics.jsonl").read_bytes() for name in ("plain", "forecast")]
    assert metrics[0] == metrics[1]  # the short runs leave no trace in the long one
    again = train.run(configured(folder, "forecast", *start, "speculator.forecast_steps=2"))
    assert again["steps"] == 4


def test_what_a_short_run_says_of_the_long_one() -> None:
    steps = [0, 10, 20, 30, 40, 50]
    curves = [
        [1.5, *(3 - 5 * s**-0.5 for s in steps[1:])],
        [1.0, *(3 - 6 * s**-0.5 for s in steps[1:])],
    ]
    found = StartForecast(steps, *curves, last_step=400, longest=8.0)
    assert found.steps_saved == 20
    assert found.gain == pytest.approx(50**-0.5)
    started, random = (found.expected(curve) for curve in curves)
    assert started is not None
    assert random is not None
    assert started.low <= 3 - 5 * 400**-0.5 <= started.high
    assert random.value < started.value
    lines = list(found.lines())
    assert lines[-1] == "  a random start comes to 1.50 in 20 steps; this start is ahead by 0.14"
    assert lines[3].startswith("  expected after 400 steps: ")
    behind = StartForecast([0, 5], [1.2, 1.3], [1.0, 1.4], last_step=9, longest=8.0)
    assert list(behind.lines())[-1] == (
        "  a random start comes to 1.20 in 5 steps; this start is behind by 0.10: start at random "
        "instead"
    )


@pytest.mark.slow
@pytest.mark.parametrize(("name", "steps"), [("eagle3", 80), ("dflash", 200)])
def test_a_transplanted_start_beats_a_random_one(name: str, steps: int, folder: Path) -> None:
    """A drafter of the tiny verifier, for a relative with other ids, depth and moved weights."""
    other = make_relative(folder / f"moved_{name}", shuffled_ids(5), TWICE, noise=0.05)
    common = [f"speculator={name}", f"cache_dir={folder / 'cache'}", "evaluation.enabled=false"]
    common += ["data.regenerate.enabled=false", "data.max_samples=600"]
    common += ["training.sequence_length=512", "training.validation_samples=12"]
    first = [*common, f"training.max_steps={steps}", f"output_dir={folder / f'{name}_first'}"]
    trained = train.run(compose("train", first))
    start = [*on(other), *common, "training.max_steps=10", "speculator.forecast_steps=10"]
    start += [f"speculator.from_pretrained={trained['checkpoint']}", "optimizer.lr=3e-3"]
    start += ["speculator.draft_vocab_size=null"]
    start += [f"speculator.num_layers={2 if name == 'dflash' else 1}"]
    train.run(compose("train", [*start, f"output_dir={folder / f'{name}_second'}"]))
    found = json.loads((folder / f"{name}_second" / "forecast.json").read_text())
    assert found["started"][0] > 0.9 * trained["best_value"]
    assert found["started"][0] > found["random"][0] + 0.2
    assert found["gain"] > 0.1
    assert found["steps_saved"] is None


def refused(config: Config) -> str:
    with pytest.raises((ConfigError, CheckpointError)) as caught:
        build(config)
    return str(caught.value)


def test_what_cannot_be_transplanted_is_told(folder: Path, relative: Path) -> None:
    place = folder / "refused"
    write_drafter(place, "dflash")
    serving = json.loads((place / "config.json").read_text())
    start = [f"speculator.from_pretrained={place}", "speculator.num_layers=1"]
    config = configured(folder, "x", *on(relative), *start)
    at = f"speculator.from_pretrained={place}: "

    def edit(change: dict[str, Any]) -> None:
        layer = serving["transformer_layer_config"] | change.pop("layer", {})
        changed = serving | {"transformer_layer_config": layer} | change
        (place / "config.json").write_text(json.dumps(changed))

    edit({"layer": {"hidden_size": 256}})
    assert refused(config) == (
        f"{at}made for a verifier with hidden_size 256, but {relative} has 128: its weights read "
        "states of that width alone; start anew (speculator.from_pretrained=null)"
    )
    verifier = {"name_or_path": "/nowhere", "architectures": []}
    edit({"speculators_config": serving["speculators_config"] | {"verifier": verifier}})
    assert refused(config) == (
        f"{at}made for /nowhere, which cannot be read here to match its tokens and layers; give "
        "its folder: speculator.pretrained_verifier=DIR"
    )
    known = configured(folder, "x", *on(relative), *start, "speculator.pretrained_verifier=tiny")
    assert build(known)[0].transplant is not None
    edit({})
    few = configured(folder, "x", *on(relative), *start, "speculator.target_layer_ids=[2,6]")
    assert refused(few) == (
        f"speculator.target_layer_ids=[2, 6]: the drafter in {place} reads 3 layers, and its "
        "weights have no place for another number"
    )
    wider = configured(folder, "x", *on(relative), *start, "speculator.intermediate_size=64")
    assert refused(wider) == (
        f"{at}transformer_layer_config.intermediate_size is 352 there and 64 here; it cannot "
        "change in a warm start"
    )
    other = configured(folder, "x", *on(relative), "speculator=eagle3", *start)
    assert refused(other) == f"{at}holds a dflash drafter; use speculator=dflash"


def test_a_moved_verifier_is_the_same_one(folder: Path, relative: Path) -> None:
    """Its folder is gone, but vocabulary and width agree: nothing is matched, and it is said."""
    place = folder / "moved"
    write_drafter(place, "dflash")
    serving = json.loads((place / "config.json").read_text())
    serving["speculators_config"]["verifier"]["name_or_path"] = "/gone"
    (place / "config.json").write_text(json.dumps(serving))
    start = [f"speculator.from_pretrained={place}", "speculator.num_layers=1"]
    built, _ = build(configured(folder, "x", *start))
    assert built.transplant is None
    assert built.notices == (
        f"{place} was made for /gone, which cannot be read here; vocabulary and width are this "
        "verifier's, so it is taken for the same model",
    )


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (
            ["speculator.forecast_steps=10"],
            "speculator.forecast_steps=10: compares a start with a random one: give "
            "from_pretrained, or init=verifier",
        ),
        (
            ["speculator.pretrained_verifier=tiny"],
            "speculator.pretrained_verifier=tiny: give from_pretrained too",
        ),
        (
            ["speculator.from_pretrained=/x", "speculator.forecast_steps=10", "launcher=ddp"],
            "speculator.forecast_steps=10: short runs are made in one process: use launcher=single",
        ),
    ],
)
def test_settings_that_do_not_go_together(overrides: list[str], line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose("train", ["speculator.init=random", *overrides])
    assert str(caught.value).splitlines() == [line]
