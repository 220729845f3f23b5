"""`tracker`: who is shown the metrics besides `metrics.jsonl`, which is always written.

Every choice of the group fills its own node, so several can be chosen: `tracker=[wandb,mlflow]`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum
from typing import Any

from speculators.config.schema.problem import Problem, positive


class WandbMode(Enum):
    """Where wandb keeps a run."""

    offline = "offline"
    online = "online"


@dataclass
class WandbConfig:
    """Weights & Biases."""

    project: str = "speculators"
    """Project the run is filed under."""
    mode: WandbMode = WandbMode.offline
    """offline: below the run directory, for `wandb sync`; online: sent as it comes."""
    entity: str | None = None
    """User or team; null: wandb's own default."""
    group: str | None = None
    """Name that runs have in common."""
    tags: list[str] = field(default_factory=list)
    """Words to find the run by."""


@dataclass
class TensorboardConfig:
    """TensorBoard event files."""

    dir: str | None = None
    """Folder of event files; null: `tensorboard` in the run directory."""


@dataclass
class TrackioConfig:
    """Trackio."""

    project: str = "speculators"
    """Project the run is filed under."""
    space_id: str | None = None
    """Hub space that shows the runs, OWNER/NAME; null: files on this machine (TRACKIO_DIR)."""
    group: str | None = None
    """Name that runs have in common."""


@dataclass
class MlflowConfig:
    """MLflow."""

    experiment: str = "speculators"
    """Experiment the run is filed under."""
    tracking_uri: str = "sqlite:///mlflow.db"
    """Database or server: `sqlite:///FILE`, `http://HOST:PORT`, ..."""


@dataclass
class TrackerConfig:
    """Nodes of the chosen trackers; null: not chosen."""

    wandb: WandbConfig | None = None
    """Weights & Biases, online or in a local folder."""
    tensorboard: TensorboardConfig | None = None
    """Event files for TensorBoard."""
    trackio: TrackioConfig | None = None
    """Trackio's local dashboard."""
    mlflow: MlflowConfig | None = None
    """An MLflow server or a local database."""
    timeout_seconds: float = 60.0
    """A tracker that is at one thing for so long is given up; training goes on without it."""

    def chosen(self) -> dict[str, Any]:
        """Return the settings of the chosen trackers, by name."""
        nodes = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: node for name, node in nodes.items() if is_dataclass(node)}

    def problems(self) -> Iterator[Problem]:
        """Check the ranges."""
        yield from positive(self, "timeout_seconds")
