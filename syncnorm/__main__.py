"""Entry point of `python -m syncnorm` and of the `syncnorm` command."""

import sys

from syncnorm.cli import main

if __name__ == "__main__":
    sys.exit(main())
