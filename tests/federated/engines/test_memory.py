"""Layers that keep more than parameters and buffers, such as the past steps of cross-iteration batch norm."""

from dataclasses import replace

import pytest
import torch

from syncnorm.config import Clients, Data, Norm, Optim, Run
from syncnorm.errors import UserError
from syncnorm.federated import simulate
from syncnorm.federated.engines import cohort, loop
from syncnorm.federated.federation import Federation
from syncnorm.federated.local import Task
from syncnorm.worlds import check

RUN = Run(
    Data("digits", size=8, train_limit=60, test_limit=30),
    model_options={"width": 4},
    norm=Norm("cbn"),
    world=Clients(count=2, rounds=1, batch=10),
    optim=Optim(lr=0.1),
)


def test_no_client_trains_with_anothers_past_steps() -> None:
    federation = Federation(replace(RUN, world=replace(RUN.world, engine="loop")))
    local, pool, state = federation.local(1), federation.population, federation.fresh(1)
    tasks = [
        Task(client, tuple(pool.train(client)[:20].split(10)), (False, False), state, seed=client)
        for client in (0, 1)
    ]
    alone = [loop.train(local, pool.x, pool.y, [task])[0] for task in tasks]
    for order in ((0, 1), (1, 0)):
        for update in loop.train(local, pool.x, pool.y, [tasks[client] for client in order]):
            assert update.loss == alone[update.client].loss
            assert all(torch.equal(value, alone[update.client].state[name]) for name, value in update.state.items())
    plain = Federation(replace(RUN, norm=Norm("bn")))
    assert loop.train(plain.local(1), pool.x, pool.y, tasks[:1])[0].loss != alone[0].loss
    with pytest.raises(UserError, match=r"\(CrossIterationBatchNorm\) keeps more than parameters and buffers.*loop"):
        cohort.train(local, pool.x, pool.y, tasks)


def test_the_batched_engine_is_refused_before_training_and_auto_takes_the_other() -> None:
    with pytest.raises(UserError, match="cannot have of their own: set engine to loop"):
        check(replace(RUN, world=replace(RUN.world, engine="cohort")))
    assert simulate(RUN).environment["engine"] == "loop"
