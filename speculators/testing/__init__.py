"""Stand-ins for tests, notebooks and benchmarks: a toy verifier and a vLLM that is none."""
