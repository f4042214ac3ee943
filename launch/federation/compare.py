"""Say how far a federation's model is from a simulated one:  python compare.py FOLDER [DATA]

FOLDER is that of a finished run (run.py); DATA is the file with the sites' function, if it gives the data of all. The
simulation has no network and no restarts. A client that was left out of a round there fails in that round here, and
keeps what it had. Exit code 1: a difference above 1e-6.
"""

import json
import logging
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from flwr.app import Context, Message

from syncnorm.federated import CohortGrid
from syncnorm.federated.flower import apps
from syncnorm.federated.flower.wire import run_as_text, run_from_text

LIMIT = 1e-6


class Missing(Exception):
    """This client is not there."""


def main(folder: Path, data: str = "") -> int:
    """Play the run again in this process, and print the differences."""
    there = torch.load(folder / "global.pt", weights_only=True)
    result = json.loads((folder / "result.json").read_text())
    run = run_from_text((folder / "run.json").read_text())
    text = run_as_text(replace(run, data=replace(run.data, path=data)) if data else run)
    left_out = result["details"].get("left_out", {})
    missed = {tuple(map(int, re.findall(r"\d+", where))) for where in left_out}
    begin = apps.begin

    def unless_missed(message: Message, context: Context) -> Any:
        if (message.content["config"]["server-round"], context.node_id - 1) in missed:
            raise Missing
        return begin(message, context)

    apps.begin = unless_missed  # type: ignore[assignment]
    count = apps.federation_of(text).world.count
    logging.getLogger("flwr").setLevel("ERROR")
    simulated = folder / "simulated"
    metrics = apps.play(CohortGrid(apps.client_app, count, engine="loop"), text, folder=simulated).metrics
    here = torch.load(simulated / "global.pt", weights_only=True)
    far = max(
        (there["state"][name].double() - value.double()).abs().max().item() for name, value in here["state"].items()
    )
    print(f"rounds: {there['round']} in the federation, {here['round']} simulated")
    print(f"left out, by round and client: {sorted(missed) or 'nobody'}")
    print(f"largest difference of an entry of the global model: {far:g}")
    differ = there["round"] != here["round"] or far > LIMIT
    absent, lost = (result["details"].get(name, []) for name in ("missing_clients", "lost_states"))
    for sentence in (*absent, *lost):
        print(sentence)
    if not absent:
        names = ("accuracy", "client_accuracy_worst", "loss")
        apart = max(abs(result["metrics"][name] - metrics[name]) for name in names)
        print(f"largest difference of {', '.join(names)} at the clients: {apart:g}")
        differ = differ or apart > LIMIT
    return int(differ)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), *sys.argv[2:3]))
