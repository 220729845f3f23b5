"""What else a drafter computes with: draft length, epsilon, switches of the algorithm."""

from typing import Any

from speculators.algorithms.conventions import Conventions
from speculators.doctor.causes import OTHER_SETTINGS
from speculators.doctor.finding import Stage
from speculators.doctor.stages.conventions import ConventionStage


def _part(says: Conventions) -> dict[str, Any]:
    return {
        "speculative_tokens": says.num_draft_tokens,
        "rms_norm_eps": says.rms_norm_eps,
        **says.switches,
    }


check = ConventionStage(
    Stage("settings", "draft length, norms and switches are those of training"),
    OTHER_SETTINGS,
    "speculative_tokens, rms_norm_eps, norm_*",
    _part,
    lambda values: ", ".join(f"{key} {value}" for key, value in values.items()),
)
