"""The checks, one family a file."""
