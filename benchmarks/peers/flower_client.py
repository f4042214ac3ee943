"""The clients of `with_flower.py`, in a module of their own for Ray's processes to import."""

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from peers.task import Task, load

client_app = ClientApp()


@lru_cache(maxsize=1)
def task_at(path: str) -> Task:
    """Return the task of a file; an actor reads it once."""
    torch.set_num_threads(1)
    return load(Path(path))


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """Train the received model for one epoch, or send it back if there is no task."""
    arrays, config = message.content["arrays"], message.content["config"]
    assert isinstance(arrays, ArrayRecord)
    assert isinstance(config, ConfigRecord)
    metrics: dict[str, Any] = {"num-examples": 1}
    if "task" in config:
        task, client = task_at(str(config["task"])), int(str(context.node_config["partition-id"]))
        model = task.model(arrays.to_torch_state_dict())
        loss = task.train(model, int(str(config["server-round"])) - 1, client)
        arrays = ArrayRecord(model.state_dict())
        metrics = {"num-examples": task.samples(client), "train-loss": loss}
    return Message(RecordDict({"arrays": arrays, "metrics": MetricRecord(metrics)}), reply_to=message)
