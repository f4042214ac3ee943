"""What a client keeps between rounds: in Flower's context, or on disk if its SuperNode names a folder.

    flower-supernode ... --node-config 'partition-id=0 num-partitions=3 folder="kept"'

Flower's context is gone when a SuperNode restarts. A folder is not: it holds, by run, the entries after the last
round whose update the server has received, and those of a round after it, whose reply may have been lost. Each
message names the former round. So a client starts where the server believes it to be, whoever restarted meanwhile.
"""

import logging
from pathlib import Path

import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict

from syncnorm.errors import UserError
from syncnorm.federated.client.states import ClientState
from syncnorm.federated.flower import wire
from syncnorm.files import whole_file

log = logging.getLogger(__name__)

FOLDER = "folder"
"""The entry of a SuperNode's --node-config that names the folder."""
SESSION, LAST = "session", "last-round"
"""Entries of a message's config: the run's name on disk, and the last round, from 0, that the server has an update of
this client from; -1 if there is none."""


def addressed(content: RecordDict, session: str, last: int) -> RecordDict:
    """Return a message's content with what a client needs to find its entries; records are shared."""
    config = content.get(wire.CONFIG)
    known = dict(config) if isinstance(config, ConfigRecord) else {}
    return RecordDict({**content, wire.CONFIG: ConfigRecord({**known, SESSION: session, LAST: last})})


def recall(message: Message, context: Context, device: torch.device) -> ClientState | None:
    """Return what the client kept after the round that the message names; None if it has nothing."""
    folder = _folder(message, context)
    if folder is None:
        return wire.kept(context.state, device)
    last = _last(message)
    path = _file(folder, last)
    if last < 0 or not path.exists():
        return None
    try:
        kept: ClientState = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # a damaged file may raise anything
        log.warning("%s cannot be read (%s): the client starts from initial values", path, error)
        return None
    return kept


def store(message: Message, context: Context, own: ClientState | None) -> None:
    """Keep a client's entries after a round, and on disk those that it started from; None changes nothing.

    Raises:
        UserError: the folder cannot be written to.
    """
    folder = _folder(message, context)
    if folder is None or not own:
        wire.keep(context.state, own)
        return
    path = _file(folder, int(own["round"]))
    try:
        with whole_file(path) as file:
            torch.save({name: value.detach().cpu().clone() for name, value in own.items()}, file)
        for other in folder.glob("round-*.pt"):
            if other not in (path, _file(folder, _last(message))):
                other.unlink()
    except OSError as error:
        raise UserError(
            f"the client cannot keep its entries in {folder} ({error.strerror}): free some space, or start its "
            'SuperNode with another folder="..." in --node-config.'
        ) from error


def _folder(message: Message, context: Context) -> Path | None:
    """Return the folder of the message's run and the node's client; None to keep entries in the context."""
    config = message.content.get(wire.CONFIG)
    session = config.get(SESSION) if isinstance(config, ConfigRecord) else None
    folder = context.node_config.get(FOLDER)
    if not folder or not isinstance(session, str):
        return None
    if not session.isalnum():  # it becomes part of a path
        raise UserError(f"the server calls this run {session!r}: that is no name of a folder.")
    return Path(str(folder)) / f"run-{session}" / f"client-{context.node_config.get('partition-id', 0)}"


def _last(message: Message) -> int:
    return int(wire.number(message.content, wire.CONFIG, LAST))


def _file(folder: Path, round_: int) -> Path:
    return folder / f"round-{round_ + 1}.pt"
