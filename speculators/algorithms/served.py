"""What a drafter writes for the serving engine, and reads back: functions of its own module."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

from torch import Tensor

from speculators.algorithms.base import ConfigT, Drafter
from speculators.algorithms.conventions import Conventions
from speculators.algorithms.tables import DraftTables
from speculators.verifier.spec import VerifierSpec


class EngineContract(Protocol):
    """How one algorithm stands in `config.json`; the `serving` module of its package."""

    def serving_config(self, config: Any, spec: VerifierSpec) -> dict[str, Any]:
        """Return the file of resolved settings; `dtype` is that of serving."""
        ...

    def config_from_serving(self, serving: Mapping[str, Any]) -> Any:
        """Rebuild the settings."""
        ...

    def engine_conventions(self, serving: Mapping[str, Any]) -> Conventions:
        """Return what vLLM makes of the file."""
        ...


class ServedDrafter(DraftTables, Drafter[ConfigT]):
    """A drafter with the verifier's tables whose checkpoints follow an `EngineContract`."""

    contract: ClassVar[Any]

    def serving_config(self) -> dict[str, Any]:
        """Return `config.json`, see `Drafter.serving_config`."""
        contract: EngineContract = self.contract
        return contract.serving_config(self.config, self.spec)

    @classmethod
    def config_from_serving(cls, config: dict[str, Any]) -> ConfigT:
        """Rebuild the settings, see `Drafter.config_from_serving`."""
        contract: EngineContract = cls.contract
        return contract.config_from_serving(config)

    @classmethod
    def served_conventions(cls, config: dict[str, Any]) -> Conventions:
        """Return what vLLM makes of a `config.json`, see `Drafter.served_conventions`."""
        contract: EngineContract = cls.contract
        return contract.engine_conventions(config)

    def saved_tensors(self) -> dict[str, Tensor]:
        """Return the trained weights, and head and maps where the vocabulary is reduced."""
        return {name: p.detach() for name, p in self.named_parameters()} | self.saved_tables()
