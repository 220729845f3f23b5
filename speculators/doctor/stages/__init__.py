"""One stage of the chain per module: a pure check of a `Subject` that returns a `Finding`."""
