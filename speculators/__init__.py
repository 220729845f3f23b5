"""Train, measure and serve drafters for speculative decoding, from one composed Hydra config.

The Python interface: the names below, each loaded when it is first used, so that `import
speculators` costs nothing. `speculators.api` says what they do.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from speculators.api import (
        compose,
        convert,
        evaluate,
        examine,
        extract,
        load_config,
        load_drafter,
        load_verifier,
        plan_run,
        prepare,
        train,
    )
    from speculators.config.schema import Config
    from speculators.errors import SpeculatorsError

__version__ = "0.1.0"

__all__ = [
    "Config",
    "SpeculatorsError",
    "compose",
    "convert",
    "evaluate",
    "examine",
    "extract",
    "load_config",
    "load_drafter",
    "load_verifier",
    "plan_run",
    "prepare",
    "train",
]

_ELSEWHERE = {"Config": "speculators.config.schema", "SpeculatorsError": "speculators.errors"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'speculators' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_ELSEWHERE.get(name, "speculators.api")), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
