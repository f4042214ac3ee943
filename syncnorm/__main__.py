"""`python -m syncnorm`, and the start of the `syncnorm` command: its packages come with the extra "study"."""

import sys


def main() -> int:
    """Run the command; without the packages that it needs, say so in one sentence and return 2."""
    try:
        from syncnorm.cli import main as command
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "syncnorm":
            raise
        print(
            f"syncnorm: the command needs the package '{error.name}', which is not installed (the layers do not): "
            "pip install 'syncnorm[study]'.",
            file=sys.stderr,
        )
        return 2
    return command()


if __name__ == "__main__":
    sys.exit(main())
