"""How many processor threads a command may use."""

from __future__ import annotations

import torch

from speculators.config.schema import Config


def limit_threads(config: Config) -> None:
    """Give torch `num_threads` threads; null leaves torch's own choice."""
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
