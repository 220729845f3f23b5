"""The verifier that ships with the package: a Qwen3 of 1.4 million weights that can chat.

It knows the small world of `speculators.data.tiny` and nothing else, but its answers there are
sensible, so that an acceptance length measured on it means something. It loads in under a second.
`python -m speculators.verifier.tiny.build` makes it anew.
"""

from __future__ import annotations

from pathlib import Path


def folder() -> Path:
    """Return the folder of the shipped model, in the layout of a Hugging Face checkpoint."""
    return Path(__file__).resolve().parent


__all__ = ["folder"]
