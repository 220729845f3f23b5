"""The benchmarks' plain DFlash, which shares no code with the drafter."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from speculators.algorithms.dflash.model import DFlashDrafter


def plain_dflash(drafter: DFlashDrafter) -> Any:
    """Return a `PlainDFlash` over the drafter's weights."""
    config = drafter.config
    return _module().PlainDFlash(
        dict(drafter.named_parameters()), drafter.embed_tokens, drafter.lm_head.weight,
        num_layers=config.num_layers, head_dim=drafter.spec.head_dim, block_size=config.block_size,
        mask_token_id=config.mask_token_id, rope_theta=10000.0, eps=drafter.spec.rms_norm_eps,
    )  # fmt: skip


def _module() -> ModuleType:
    path = Path(__file__).parents[3] / "benchmarks" / "plain_dflash.py"
    found = importlib.util.spec_from_file_location("plain_dflash", path)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules["plain_dflash"] = module
    found.loader.exec_module(module)
    return module
