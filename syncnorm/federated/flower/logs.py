"""Flower's log lines: silent below a warning, unless the user has set a level."""

import logging
import os


def hush_flower() -> None:
    """Silence Flower's log below WARNING where neither FLWR_LOG_LEVEL nor the program has chosen a level.

    To see it again: `logging.getLogger("flwr").setLevel("INFO")`, or FLWR_LOG_LEVEL=INFO in the environment.
    """
    logger = logging.getLogger("flwr")
    # DEBUG is what Flower itself sets on import, and filters in its handler.
    if "FLWR_LOG_LEVEL" not in os.environ and logger.level == logging.DEBUG:
        logger.setLevel(logging.WARNING)
