"""Where metrics go besides the run directory."""

from speculators.training.trackers.base import RunCard, Tracker
from speculators.training.trackers.tracking import Tracking, open_trackers

__all__ = ["RunCard", "Tracker", "Tracking", "open_trackers"]
