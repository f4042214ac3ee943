"""The only use of Flower's internals: who builds a message, and which id a sent message has.

A process that Flower starts is told its task; `Message(...)` needs that and fails elsewhere. Flower's own grids set a
message's id when it is sent, and no public name does. A test of this file checks both against the installed Flower.
"""

from importlib.metadata import version

from flwr.app import Message, MessageType, RecordDict
from flwr.supercore.run import Run

from syncnorm.errors import UserError

SERVER = 1
"""The node id of the server, as in Flower."""


def act_as_server() -> None:
    """Let this process build messages, as a ServerApp that Flower started; nothing changes where it can already.

    Raises:
        UserError: a version of Flower that identifies processes otherwise.
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
    """Return the run that Flower's own simulation would describe, with nothing in it but the run id 1."""
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
