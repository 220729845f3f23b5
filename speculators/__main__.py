"""`python -m speculators` is `speculators`."""

import sys

from speculators.cli import main

if __name__ == "__main__":
    sys.exit(main())
