"""Counters out of the text a server prints."""

from __future__ import annotations

import pytest

from speculators.errors import LaunchError
from speculators.evaluation.acceptance import Acceptance
from speculators.evaluation.engine_metrics import DraftCounters
from speculators.testing import draft_counters

# Two engines of a data-parallel server, as vLLM 0.32 prints them.
TEXT = """\
# HELP vllm:spec_decode_num_drafts_total Number of spec decoding drafts.
# TYPE vllm:spec_decode_num_drafts_total counter
vllm:spec_decode_num_drafts_total{engine="0",model_name="/m, \\"x\\""} 7.0
vllm:spec_decode_num_drafts_total{engine="1",model_name="/m"} 3.0
vllm:spec_decode_num_drafts_created{engine="0",model_name="/m"} 1.795e+09
vllm:spec_decode_num_draft_tokens_total{engine="0",model_name="/m"} 1.4e+01
vllm:spec_decode_num_draft_tokens_total{engine="1",model_name="/m"} 6.0
vllm:spec_decode_num_accepted_tokens_total{engine="0",model_name="/m"} 5.0
vllm:spec_decode_num_accepted_tokens_total{engine="1",model_name="/m"} 1.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",model_name="/m",position="1"} 1.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",model_name="/m",position="0"} 4.0
vllm:spec_decode_num_accepted_tokens_per_pos_created{engine="0",position="0"} 1.795e+09
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="1",model_name="/m",position="0"} 1.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="1",model_name="/m",position="1"} 0.0
vllm:generation_tokens_total{engine="0",model_name="/m"} 99.0
"""


def test_engines_are_added_up() -> None:
    assert DraftCounters.parse(TEXT) == DraftCounters(10, 20, 6, (5, 1))


def test_what_is_gained_gives_the_numbers_of_counted_drafts() -> None:
    runs = [2, 0, 3, 1, 1]
    server = draft_counters.DraftCounters(3, "m")
    server.count([1, 3])
    before = DraftCounters.parse(server.text())
    server.count(runs)
    gained = DraftCounters.parse(server.text()) - before
    assert gained == DraftCounters(5, 15, 7, (4, 2, 1))
    assert gained.emitted == 12
    assert gained.acceptance().to_dict() == Acceptance.from_runs([runs], 3).to_dict()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the server does not draft"),
        ("vllm:generation_tokens_total 4.0\n", "the server does not draft"),
        (TEXT.replace("num_draft_tokens_total", "x"), "lacks counters .*num_draft_tokens_total"),
        (TEXT.replace("per_pos", "x"), r"lacks counters \(per position\)"),
        (TEXT.replace('position="1"', 'position="2"'), r"lacks counters \(per position\)"),
    ],
)
def test_missing_counters_are_named(text: str, message: str) -> None:
    with pytest.raises(LaunchError, match=message):
        DraftCounters.parse(text)
