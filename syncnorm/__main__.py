"""`python -m syncnorm`, and the start of the `syncnorm` command."""

import sys

from syncnorm.cli import main

if __name__ == "__main__":
    sys.exit(main())
