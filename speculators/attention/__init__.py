"""Attention of anchored blocks: one mask definition, one interface, two backends."""
