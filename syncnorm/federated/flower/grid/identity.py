"""The only use of Flower's internals: permission to build messages, and the ids of sent messages.

Flower tells a process that it starts its task; `Message(...)` needs that and fails in other processes. Flower's own
grids set a message's id when it is sent, without a public function. A test of this file checks both against the
installed Flower.
"""

from importlib.metadata import version

from flwr.app import Message, MessageType, RecordDict
from flwr.supercore.run import Run

from syncnorm.errors import UserError

SERVER = 1
"""The node id of the server, as in Flower."""


def act_as_server() -> None:
    """Let this process build messages, like a ServerApp that Flower started; does nothing if it already can.

    Raises:
        UserError: a version of Flower that identifies processes in another way.
    """
    if _can_build():
        return
    try:
        from flwr.supercore.task_identity import TaskIdentity

        TaskIdentity.task_id = TaskIdentity.run_id = 1
        TaskIdentity.node_id = SERVER
    except (ImportError, AttributeError) as error:
        raise _unsupported() from error
    if not _can_build():
        raise _unsupported()


def stamp(message: Message, message_id: str) -> None:
    """Give a message the id that its reply will name in `metadata.reply_to_message_id`."""
    message.metadata.__dict__["_message_id"] = message_id
    if message.metadata.message_id != message_id:
        raise _unsupported()


def empty_run() -> Run:
    """Return the run description of Flower's own simulation, empty except for the run id 1."""
    return Run.create_empty(run_id=1)


def _can_build() -> bool:
    try:
        Message(RecordDict(), SERVER, MessageType.TRAIN)
    except RuntimeError:
        return False
    return True


def _unsupported() -> UserError:
    return UserError(
        f"flwr {version('flwr')} builds messages in a way that CohortGrid does not know: install flwr 1.41, or use "
        "Flower's own simulation."
    )
