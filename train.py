"""`python train.py [overrides]` is `speculators train [overrides]`."""

import sys

from speculators.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
