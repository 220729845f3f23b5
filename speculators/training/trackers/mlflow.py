"""MLflow: a database file or a server, spoken to by run id, without MLflow's global state."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from speculators.config.schema import MlflowConfig
from speculators.training.trackers.base import Row, RunCard, numbers

_FILE = "sqlite:///"
_LONGEST_VALUE, _MOST_PARAMS = 6000, 100
"""What a server takes: characters of a parameter, parameters of one request."""


class MlflowTracker:
    """Files a run in an experiment.

    Args:
        config: experiment and place.
    """

    def __init__(self, config: MlflowConfig) -> None:
        self._config = config
        self._client: Any = None
        self._run_id = ""

    def start(self, card: RunCard) -> str:
        """Open the run and return its id; parameters are set once, they cannot change."""
        from mlflow.tracking import MlflowClient

        place = self._config.tracking_uri
        folder = Path(place.removeprefix(_FILE)).absolute().parent
        if place.startswith(_FILE):
            folder.mkdir(parents=True, exist_ok=True)
        self._client = MlflowClient(tracking_uri=place)
        if card.run_id is None:
            experiment = self._experiment(folder.as_uri() if place.startswith(_FILE) else None)
            self._run_id = self._client.create_run(experiment, run_name=card.name).info.run_id
            self._describe(card.settings)
        else:
            self._run_id = card.run_id
            self._client.update_run(self._run_id, status="RUNNING")
        self._client.log_dict(self._run_id, dict(card.provenance), "provenance.json")
        return self._run_id

    def log(self, line: Row) -> None:
        """Log the numbers of one line in one request."""
        from mlflow.entities import Metric

        now, step = int(time.time() * 1000), line["step"]
        metrics = [Metric(name, value, now, step) for name, value in numbers(line).items()]
        self._client.log_batch(self._run_id, metrics=metrics)

    def table(self, name: str, rows: Sequence[Row], step: int) -> None:
        """Log a table as an artifact."""
        columns = {head: [row[head] for row in rows] for head in (rows[0] if rows else ())}
        self._client.log_dict(self._run_id, columns, f"{name}.json")

    def image(self, name: str, path: Path, step: int) -> None:
        """Log an image as an artifact."""
        self._client.log_artifact(self._run_id, str(path), str(Path(name).parent))

    def finish(self, *, failed: bool) -> None:
        """Close the run."""
        self._client.set_terminated(self._run_id, "FAILED" if failed else "FINISHED")

    def _experiment(self, artifacts: str | None) -> str:
        """Find the experiment or begin it; several runs may be at it."""
        from mlflow.exceptions import MlflowException

        name = self._config.experiment
        place = None if artifacts is None else f"{artifacts}/mlartifacts/{name}"
        found = self._client.get_experiment_by_name(name)
        if found is None:
            try:
                return self._client.create_experiment(name, artifact_location=place)
            except MlflowException:
                found = self._client.get_experiment_by_name(name)
                if found is None:
                    raise
        return found.experiment_id

    def _describe(self, settings: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        params = (Param(key, str(value)[:_LONGEST_VALUE]) for key, value in settings.items())
        for batch in _batches(params, _MOST_PARAMS):
            self._client.log_batch(self._run_id, params=batch)


def _batches(items: Iterator[Any], size: int) -> Iterator[list[Any]]:
    while batch := list(islice(items, size)):
        yield batch
