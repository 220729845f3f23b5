"""The real libraries, offline: a run and its continuation, read back with the libraries' own eyes.

Each test breaks a run down after a checkpoint, lets it go on, and compares what the library holds
with `metrics.jsonl`: every line once, under one id, with configuration, provenance, a table and a
plot; and `metrics.jsonl` equal to that of an untracked run.
"""

from __future__ import annotations

import io
import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from speculators.config.schema import (
    MlflowConfig,
    TensorboardConfig,
    TrackerConfig,
    TrackioConfig,
    WandbConfig,
)
from speculators.console import open_console
from speculators.training.state import read_state
from speculators.training.trackers import Tracking, open_trackers
from speculators.training.trackers.base import numbers
from training.test_trackers import DyingValidation, recorded
from training.toy import toy_config, toy_trainer

pytestmark = pytest.mark.filterwarnings("ignore")  # theirs
SETTINGS: dict[str, Any] = {
    "checkpoint_every_steps": 3,
    "validate_every_steps": 2,
    "log_every_steps": 1,
}
Series = dict[str, list[tuple[int, Any]]]


def track(run_dir: Path, config: TrackerConfig) -> None:
    """Train the toy in two starts, then show a table and a plot as the end of a run does."""
    config.timeout_seconds = 600.0
    screen = io.StringIO()

    def start(validate: DyingValidation) -> Tracking:
        tracking = open_trackers(config)
        with tracking:
            toy_trainer(
                run_dir,
                toy_config(run_dir, **SETTINGS),
                tracking=tracking,
                validate=validate,
                console=open_console(file=screen, width=300),
            ).fit()
            tracking.table(
                "checkpoints", [{"step": 8, "best": None}, {"step": 10, "best": "best"}], 10
            )
            tracking.image("plots/loss", plot(run_dir), 10)
        return tracking

    run_dir.mkdir()
    (run_dir / "provenance.json").write_text('{"git": {"commit": "abc"}, "argv": ["x"]}')
    with pytest.raises(RuntimeError, match="out of memory"):
        start(DyingValidation(4))
    start(DyingValidation(0))
    assert "tracker=" not in screen.getvalue()


def plot(run_dir: Path) -> Path:
    path = run_dir / "loss.png"
    drawing = Figure(figsize=(1, 1))
    drawing.add_subplot().plot([1, 2])
    drawing.savefig(path)
    return path


def expected(run_dir: Path) -> Series:
    """Every number of `metrics.jsonl`, in order."""
    series: Series = {}
    for line in recorded(run_dir):
        for name, value in numbers(line).items():
            series.setdefault(name, []).append((line["step"], value))
    return series


def without_times(series: Series) -> Series:
    return {name: points for name, points in series.items() if name.split("/")[0] in KINDS}


KINDS = ("train", "validation", "bad_step")


@pytest.fixture(scope="module")
def untracked(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    run_dir = tmp_path_factory.mktemp("untracked") / "run"
    toy_trainer(run_dir, toy_config(run_dir, **SETTINGS)).fit()
    return (run_dir / "metrics.jsonl").read_bytes()


def test_wandb(tmp_path: Path, untracked: bytes) -> None:
    from training.wandb_files import complete, configuration, history

    run_dir = tmp_path / "run"
    track(run_dir, TrackerConfig(wandb=WandbConfig(project="toy")))
    assert (run_dir / "metrics.jsonl").read_bytes() == untracked
    run_id = read_state(run_dir / "checkpoints" / "1").tracker_run_ids["wandb"]
    files = [complete(file) for file in sorted((run_dir / "wandb").glob("offline-run-*/*.wandb"))]
    assert [file.name for file in files] == [f"run-{run_id}.wandb"] * 2
    rows = [row for file in files for row in history(file)]
    steps = [row["_step"] for row in rows]
    assert steps == sorted(steps)  # so that the second can be synced behind the first
    series: Series = {}
    for row in rows:
        for name, value in row.items():
            series.setdefault(name, []).append((row["_step"], value))
    assert without_times(series) == expected(run_dir)
    assert rows[-1]["checkpoints._type"] == "table-file"
    assert rows[-1]["plots/loss._type"] == "image-file"
    for file in files:
        settings = configuration(file)
        assert settings["optimizer.lr"] == 0.01
        assert settings["provenance"]["git"] == {"commit": "abc"}


def test_tensorboard(tmp_path: Path, untracked: bytes) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run_dir = tmp_path / "run"
    track(run_dir, TrackerConfig(tensorboard=TensorboardConfig()))
    assert (run_dir / "metrics.jsonl").read_bytes() == untracked
    found = EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    series = {
        name: [(event.step, event.value) for event in found.Scalars(name)]
        for name in found.Tags()["scalars"]
    }
    wanted = expected(run_dir)
    assert without_times(series).keys() == wanted.keys()
    for name, points in wanted.items():
        assert [step for step, _ in series[name]] == [step for step, _ in points], name
        assert [v for _, v in series[name]] == pytest.approx([v for _, v in points], rel=1e-6)
    texts = {name: found.Tensors(name) for name in found.Tags()["tensors"]}
    assert {"config/text_summary", "provenance/text_summary"} <= texts.keys()
    assert b"optimizer.lr" in texts["config/text_summary"][0].tensor_proto.string_val[0]
    assert len(texts["checkpoints/text_summary"]) == 1
    assert found.Tags()["images"] == ["plots/loss"]


@pytest.fixture
def trackio_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where Trackio keeps its files: read when it is imported, so set in the module as well."""
    from trackio import sqlite_storage, utils
    from trackio.media import media
    from trackio.media import utils as media_utils

    folder = tmp_path / "trackio"
    for module in (utils, sqlite_storage, media, media_utils):
        for name, below in (("TRACKIO_DIR", ""), ("MEDIA_DIR", "media")):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, folder / below)
    return folder


def test_trackio(tmp_path: Path, untracked: bytes, trackio_folder: Path) -> None:
    run_dir = tmp_path / "run"
    track(run_dir, TrackerConfig(trackio=TrackioConfig(project="toy")))
    assert (run_dir / "metrics.jsonl").read_bytes() == untracked
    name = read_state(run_dir / "checkpoints" / "1").tracker_run_ids["trackio"]
    with sqlite3.connect(trackio_folder / "toy.db") as database:
        rows = database.execute("select run_id, run_name, step, metrics from metrics order by id")
        entries = [(run, called, step, json.loads(text)) for run, called, step, text in rows]
        configs = [json.loads(text) for (text,) in database.execute("select config from configs")]
    database.close()
    assert len({run for run, *_ in entries}) == 1
    assert {called for _, called, *_ in entries} == {name}
    series: Series = {}
    for _, _, step, values in entries:
        for key, value in values.items():
            series.setdefault(key, []).append((step, value))
    assert without_times(series) == expected(run_dir)
    assert series["checkpoints"][0][1]["_value"][1] == {"step": 10, "best": "best"}
    assert len(series["plots/loss"]) == 1
    assert configs[0]["optimizer.lr"] == 0.01
    assert configs[0]["provenance"]["git"] == {"commit": "abc"}


@pytest.mark.slow
def test_mlflow(tmp_path: Path, untracked: bytes) -> None:
    from mlflow.tracking import MlflowClient

    run_dir = tmp_path / "run"
    uri = f"sqlite:///{tmp_path / 'below' / 'mlflow.db'}"
    track(run_dir, TrackerConfig(mlflow=MlflowConfig(experiment="toy", tracking_uri=uri)))
    assert (run_dir / "metrics.jsonl").read_bytes() == untracked
    client: Any = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("toy")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_id == read_state(run_dir / "checkpoints" / "1").tracker_run_ids["mlflow"]
    assert (run.info.run_name, run.info.status) == ("run", "FINISHED")
    series = {
        name: [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)]
        for name in run.data.metrics
    }
    assert {name: sorted(points) for name, points in without_times(series).items()} == expected(
        run_dir
    )
    assert run.data.params["optimizer.lr"] == "0.01"
    artifacts = Path(run.info.artifact_uri.removeprefix("file://"))
    assert artifacts.is_relative_to(tmp_path / "below")
    provenance = json.loads((artifacts / "provenance.json").read_text())
    assert provenance["git"] == {"commit": "abc"}
    table = json.loads((artifacts / "checkpoints.json").read_text())
    assert table == {"step": [8, 10], "best": [None, "best"]}
    assert (artifacts / "plots" / "loss.png").stat().st_size > 0


def test_a_library_that_is_not_installed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "trackio", None)
    screen = io.StringIO()
    with open_trackers(TrackerConfig(trackio=TrackioConfig())) as tracking:
        console = open_console(file=screen, width=300)
        toy_trainer(tmp_path, tracking=tracking, console=console).fit()
    assert (
        "tracker=trackio: ModuleNotFoundError: import of trackio halted; None in sys.modules; "
        "training goes on without it"
    ) in screen.getvalue()
