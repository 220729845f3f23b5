"""Conversations that the project generates itself: a small closed world in plain English.

Enough for the tiny verifier to learn from nothing, varied enough that no small model can recite
it: stories, poems, sums with their steps, lists, spelling, an invented town, advice, small texts
with questions, notes, a little Python, small talk and polite refusals.
"""

from __future__ import annotations

from speculators.data.tiny.exchange import Exchange, FollowUp, is_held_out
from speculators.data.tiny.generate import TinyPrompt, tiny_conversations, tiny_prompts

__all__ = [
    "Exchange",
    "FollowUp",
    "TinyPrompt",
    "is_held_out",
    "tiny_conversations",
    "tiny_prompts",
]
