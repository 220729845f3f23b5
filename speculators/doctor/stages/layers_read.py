"""The engine reads the verifier layers that were trained on."""

from speculators.doctor.causes import WRONG_LAYER_IDS
from speculators.doctor.finding import Stage
from speculators.doctor.stages.conventions import ConventionStage

check = ConventionStage(
    Stage("layers read", "config.json names the layers of training, as the engine counts them"),
    WRONG_LAYER_IDS,
    "aux_hidden_state_layer_ids",
    lambda says: says.layer_ids,
    lambda ids: f"layers {', '.join(map(str, ids))}",
)
