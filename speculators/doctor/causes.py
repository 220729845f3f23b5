"""Why a drafter is accepted less than it could be: every cause by name, and what to change."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cause:
    """One named cause.

    Attributes:
        name: in two or three words; what the doctor prints first.
        means: what is wrong.
        change: what to do about it, with the keys of the configuration.
    """

    name: str
    means: str
    change: str


OTHER_TOKENIZER = Cause(
    "other tokenizer",
    "token ids mean other texts than while training",
    "serve the verifier the drafter was trained with, or train again with this one",
)
WRONG_TEMPLATE = Cause(
    "wrong template",
    "prompts are rendered differently than while training, so answers follow texts no training saw",
    "train with what is served: verifier.template=auto and the same verifier.template_arguments, "
    "or serve with --chat-template",
)
OTHER_VERIFIER = Cause(
    "other verifier",
    "weights or revision of the verifier are not those of training",
    "set verifier.name_or_path and verifier.revision to those of training, or train again",
)
STALE_VOCABULARY = Cause(
    "stale vocabulary map",
    "rows of the draft head and d2t name different tokens",
    "write head and maps from one draft vocabulary: delete the old maps and train again, or start "
    "from the checkpoint with speculator.from_pretrained, which keeps its map",
)
WRONG_LAYER_IDS = Cause(
    "wrong layer ids",
    "the drafter reads other layers than it was trained on",
    "count as vLLM does, id i is the stream entering layer i, in speculator.target_layer_ids, in "
    "the server's arguments (`speculators serve` prints them) and in config.json",
)
SWAPPED_LAYERS = Cause(
    "swapped layers",
    "the layers stand in another order than their ids",
    "keep layers ascending wherever states are stored or handed over; fill the store again",
)
NORMED_LAST_STATE = Cause(
    "normed last state",
    "the teacher's state has been through the final norm, which the teacher then applies again",
    "capture the stream entering the final norm (extraction id L), not the model's last output; "
    "fill the store again",
)
FOREIGN_STATES = Cause(
    "foreign states",
    "captured states are of no layer of this verifier: another model, revision, or other requests",
    "check what computes them (hidden_states.endpoints, hidden_states.store_path) and fill the "
    "store again",
)
WRONG_TEACHER = Cause(
    "wrong teacher",
    "logits of norm and head over the captured state are not the verifier's",
    "check the verifier's final norm, head and logit cap; the states may be of another precision",
)
WRONG_MASK_TOKEN = Cause(
    "wrong mask token",
    "slots to be filled enter as another row than while training, or as a token of texts",
    "set mask_token_id in config.json to that of training; speculator.mask_token_id=null finds a "
    "row no text uses",
)
WRONG_ROPE = Cause(
    "wrong rope",
    "rotary angles differ between training and serving",
    "set rope_parameters in config.json to those of training (rope_theta, rope_type, factors)",
)
WRONG_CAUSALITY = Cause(
    "wrong causality",
    "slots of a block see other slots, or another window, when served than while training",
    "let config.json say what was trained: sliding_window_non_causal, layer_types, sliding_window; "
    "or train what can be served",
)
OTHER_SETTINGS = Cause(
    "other settings",
    "a setting of the draft layers differs between training and serving",
    "set it in config.json to the value of training",
)
DAMAGED_CHECKPOINT = Cause(
    "damaged checkpoint",
    "tensors are missing, unknown, misshaped or not finite; an engine may serve it all the same",
    "write the checkpoint again, or go back to the one before it",
)
LEAKING_MASK = Cause(
    "leaking mask",
    "training sees what it has to predict, and learns to copy it",
    "a fault of the code: states from the newest token on, and tokens after it, must be invisible "
    "to the drafted slots",
)
SHIFTED_LABELS = Cause(
    "shifted labels",
    "training compares a slot with the token before or behind the one it is served for",
    "a fault of the code or of the data: slot k after position a is for the token at a + k",
)
OTHER_FORWARD = Cause(
    "training and decoding differ",
    "the training pass and the drafting pass of the same weights choose different tokens",
    "a fault of the code: positions, caches or number formats of the two passes differ",
)
CHANGED_WEIGHTS = Cause(
    "changed weights",
    "what is read back is not what was trained",
    "write the checkpoint again; training.checkpoint_dtype=float32 keeps every bit",
)
OTHER_ENGINE = Cause(
    "engine drafts differently",
    "the engine accepts other drafts of the same prompts than decoding in this process",
    "compare dtype (--dtype), versions and the loader's log; every stage before this one agreed",
)
ALL_ONES_MASK = Cause(
    "all-ones mask",
    "prompts are trained on as if the verifier had written them",
    "look at it with `speculators prepare show=3`; choose a verifier.template whose answers can be "
    "told, or give pre-tokenised rows a loss_mask of the answers alone",
)
OFF_POLICY = Cause(
    "off-policy data",
    "answers in the data are not what the verifier would write",
    "let the verifier answer: data.regenerate.enabled=true",
)
FROZEN_BFLOAT16 = Cause(
    "bf16 weights that no longer move",
    "weights are kept in bf16, and steps smaller than their spacing are lost",
    "keep fp32 weights under the optimizer (this project does: do not round them), or raise "
    "optimizer.lr",
)
TOO_FEW_ANCHORS = Cause(
    "too few anchors",
    "most answer tokens are never predicted by any block",
    "raise speculator.max_anchors, or train for more epochs (training.epochs)",
)
OVERFIT = Cause(
    "overfit",
    "the training rows are known by heart and others are not",
    "more data (data.max_samples, a larger data=...), fewer training.epochs; keep checkpoint_best",
)
UNSTABLE = Cause(
    "unstable steps",
    "many steps were skipped for NaN or infinity",
    "lower optimizer.lr or training.clip_norm; the first bad tensor is named",
)
SMALL_VOCABULARY = Cause(
    "draft vocabulary too small",
    "many tokens of the verifier's answers cannot be drafted at all",
    "raise speculator.draft_vocab_size; `speculators prepare` prints what each size reaches",
)
UNTRAINED_POSITIONS = Cause(
    "untrained positions",
    "more tokens are drafted than are ever trained",
    "train as many steps as are drafted (speculator.ttt_steps, speculator.block_size), or draft "
    "fewer (speculator.num_draft_tokens)",
)
LONG_CONTEXTS = Cause(
    "contexts longer than trained",
    "acceptance falls where contexts are longer than any training row",
    "raise training.sequence_length and train on longer conversations",
)
UNEVEN_SLICES = Cause(
    "uneven data",
    "one kind of prompt is accepted far less than the others",
    "add data of that kind (data=mixture, data.sources), answered by the verifier",
)
LOOPING_ANSWERS = Cause(
    "looping answers",
    "the verifier repeats itself, so acceptance says nothing about real answers",
    "give prompts the verifier answers (evaluation.prompts), in its own template",
)

ALL: tuple[Cause, ...] = tuple(value for value in globals().values() if isinstance(value, Cause))
"""Every cause, in the order of the chain."""
