"""Configuration: what exists, how it is composed, and what is wrong with it. Free of torch."""
