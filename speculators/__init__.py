"""Train, measure and serve drafters for speculative decoding, from one composed Hydra config."""

__version__ = "0.1.0"
