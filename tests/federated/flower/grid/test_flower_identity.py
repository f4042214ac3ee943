"""The contract with Flower's private side: what identity.py touches exists and does what it is touched for."""

import subprocess
import sys

import pytest
from flwr.app import Message, MessageType, RecordDict

from syncnorm.errors import UserError
from syncnorm.federated.flower.grid import identity


def test_messages_can_be_built_where_flower_started_nothing() -> None:
    program = (
        "from flwr.app import Message, RecordDict\n"
        "from syncnorm.federated.flower.grid.identity import act_as_server\n"
        "act_as_server()\n"
        "m = Message(RecordDict(), 7, 'train')\n"
        "print(m.metadata.src_node_id, m.metadata.dst_node_id, m.metadata.run_id)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "7", "1"]


def test_an_identity_that_flower_gave_is_kept() -> None:
    from flwr.supercore.task_identity import TaskIdentity

    identity.act_as_server()
    before = TaskIdentity.run_id
    TaskIdentity.run_id = 99
    identity.act_as_server()
    assert Message(RecordDict(), 7, MessageType.TRAIN).metadata.run_id == 99
    TaskIdentity.run_id = before


def test_a_stamp_is_what_the_reply_names() -> None:
    identity.act_as_server()
    message = Message(RecordDict(), 7, MessageType.TRAIN)
    identity.stamp(message, "first")
    reply = Message(RecordDict(), reply_to=message)
    assert (message.metadata.message_id, reply.metadata.reply_to_message_id) == ("first", "first")
    assert (reply.metadata.src_node_id, reply.metadata.dst_node_id) == (7, message.metadata.src_node_id)


def test_another_flower_is_refused_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "_can_build", lambda: False)
    with pytest.raises(UserError, match=r"flwr \d+\.\d+.*install flwr 1.41"):
        identity.act_as_server()


def test_the_run_is_empty() -> None:
    assert identity.empty_run().run_id == 1
