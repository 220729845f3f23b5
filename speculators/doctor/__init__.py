"""Proof that training, file and engine compute the same, and why acceptance is low where it is."""
