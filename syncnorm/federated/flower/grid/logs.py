"""Flower's log: silent below WARNING, unless the user has set a level."""

import logging
import os


def hush_flower() -> None:
    """Silence Flower's log below WARNING unless FLWR_LOG_LEVEL or the program has chosen a level.

    To see it again: `logging.getLogger("flwr").setLevel("INFO")`, or FLWR_LOG_LEVEL=INFO in the environment.
    """
    logger = logging.getLogger("flwr")
    # DEBUG is what Flower itself sets on import, and filters in its handler.
    if "FLWR_LOG_LEVEL" not in os.environ and logger.level == logging.DEBUG:
        logger.setLevel(logging.WARNING)
