"""Several runs that answer one question: what became of each, and who leads."""
