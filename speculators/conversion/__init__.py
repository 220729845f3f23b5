"""Layouts of a drafter on disk, and files that are whole or not there."""
