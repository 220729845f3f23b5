"""One rule per module: a signature in what a run left, and the test that tells causes apart."""
