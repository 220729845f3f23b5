"""Where metrics go besides the run directory."""

from speculators.training.trackers.base import NoTracker, ShieldedTracker, Tracker, open_tracker

__all__ = ["NoTracker", "ShieldedTracker", "Tracker", "open_tracker"]
