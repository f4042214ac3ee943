"""A study over two ranks, of which the second dies as often as the file `lives` says.

The file `calls` has a byte a client that the first rank has trained. The environment names the folder of both, and
may ask for a pause in seconds after each client.
"""

import os
import signal
import time
from pathlib import Path

from small_runs import small_run

import syncnorm
from syncnorm.federated import Algorithm
from syncnorm.federated.algorithms.base import Trained
from syncnorm.federated.messages import Tensors
from syncnorm.study import Study

FOLDER = "SYNCNORM_TEST_LIVES"
ROUNDS = 6
trained_here = 0


@syncnorm.register_algorithm("dying")
class Dying(Algorithm):
    """FedAvg, but the second rank dies in the third round that it plays."""

    def client_result(self, trained: Trained) -> tuple[Tensors, Tensors]:
        """Return nothing, or not at all."""
        global trained_here
        trained_here += 1
        time.sleep(float(os.environ.get("SYNCNORM_TEST_PAUSE", "0")))
        if os.environ.get("RANK") == "0":
            with (Path(os.environ[FOLDER]) / "calls").open("a") as calls:
                calls.write(".")
        if os.environ.get("RANK") == "1" and trained_here == 5:
            lives = Path(os.environ[FOLDER]) / "lives"
            if left := int(lives.read_text()):
                lives.write_text(str(left - 1))
                os.kill(os.getpid(), signal.SIGKILL)
        return {}, {}


RUN = small_run(
    count=4, rounds=ROUNDS, method="silobn", algorithm="dying", engine="torchrun", rank_engine="loop", ranks=2
)
STUDY = Study(name="dying", question="Does it end?", base=RUN, vary={"method": ["silobn"]}, seeds=1)
