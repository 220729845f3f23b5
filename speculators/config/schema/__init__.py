"""What can be configured: one dataclass per group, torch-free, validated as a whole.

Schemas state a field's existence, type, unit, range and neutral default. Which values belong
together is said once, in the YAML files under `conf/`. Every schema may have
`problems(self) -> Iterator[Problem]`; `speculators.config.validation` walks the tree, calls it
everywhere and prefixes the dotted path.
"""

from speculators.config.schema.convert import ConvertConfig
from speculators.config.schema.data import (
    DataConfig,
    MultiTurn,
    RegenerateConfig,
    Truncation,
    Unfinished,
)
from speculators.config.schema.doctor import DoctorConfig
from speculators.config.schema.evaluation import EvaluationConfig, Sampling
from speculators.config.schema.expected import ExpectedConfig, ExpectedResult
from speculators.config.schema.extract import ExtractConfig
from speculators.config.schema.hidden_states import (
    FetchConfig,
    HiddenStatesConfig,
    HiddenStatesMode,
    OnGenerate,
    OnMissing,
    StoreDtype,
)
from speculators.config.schema.optimization import (
    AdamWConfig,
    MuonConfig,
    OptimizerConfig,
    ScheduleConfig,
    ScheduleName,
)
from speculators.config.schema.plan import PlanConfig
from speculators.config.schema.root import AttentionBackend, Config
from speculators.config.schema.serve import ServeConfig
from speculators.config.schema.source import DataFormat, PartConfig, SourceConfig
from speculators.config.schema.speculator import (
    CeLabels,
    DraftLayersConfig,
    Init,
    LossWeights,
    SpeculatorConfig,
)
from speculators.config.schema.suite import SuiteConfig
from speculators.config.schema.sweep import Objective, SweepConfig
from speculators.config.schema.tracker import (
    MlflowConfig,
    TensorboardConfig,
    TrackerConfig,
    TrackioConfig,
    WandbConfig,
    WandbMode,
)
from speculators.config.schema.training import (
    BestMetric,
    FloatType,
    LauncherConfig,
    Precision,
    StopWhenConfig,
    TrainingConfig,
)
from speculators.config.schema.verifier import VerifierConfig, VerifierSizes

__all__ = [
    "AdamWConfig",
    "AttentionBackend",
    "BestMetric",
    "CeLabels",
    "Config",
    "ConvertConfig",
    "DataConfig",
    "DataFormat",
    "DoctorConfig",
    "DraftLayersConfig",
    "EvaluationConfig",
    "ExpectedConfig",
    "ExpectedResult",
    "ExtractConfig",
    "FetchConfig",
    "FloatType",
    "HiddenStatesConfig",
    "HiddenStatesMode",
    "Init",
    "LauncherConfig",
    "LossWeights",
    "MlflowConfig",
    "MultiTurn",
    "MuonConfig",
    "Objective",
    "OnGenerate",
    "OnMissing",
    "OptimizerConfig",
    "PartConfig",
    "PlanConfig",
    "Precision",
    "RegenerateConfig",
    "Sampling",
    "ScheduleConfig",
    "ScheduleName",
    "ServeConfig",
    "SourceConfig",
    "SpeculatorConfig",
    "StopWhenConfig",
    "StoreDtype",
    "SuiteConfig",
    "SweepConfig",
    "TensorboardConfig",
    "TrackerConfig",
    "TrackioConfig",
    "TrainingConfig",
    "Truncation",
    "Unfinished",
    "VerifierConfig",
    "VerifierSizes",
    "WandbConfig",
    "WandbMode",
]
