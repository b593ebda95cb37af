"""A group as one line of JSON, for people and for programs that look for one record.

Secrets stay out: of a private part, and of the password in the body of a classic user, only the length is shown. Of an
Idempotency-Key the seq, the time and the length of the answer are shown, of the answers to the workers their number.
"""

from __future__ import annotations

from typing import Any

import msgspec

from server.batch import decode_entry
from server.commands import Kind, encode_json
from server.journal.format import Change
from tools.journal.survey import Found


def line(found: Found) -> str:
    """Return the line, without its end."""
    group = found.group
    values = {
        "group": group.number,
        "epoch": group.epoch,
        "segment": found.segment,
        "offset": found.offset,
        "is_sound": found.is_sound,
        "first_seq": group.first_seq,
        "count": group.count,
        "changes": [_change(change) for change in group.changes],
        "answers": _answers(group.answers),
    }
    return encode_json(values).decode()


def _change(change: Change) -> dict[str, Any]:
    return {
        "kind": Kind(change.kind).name.lower() if change.kind in list(Kind) else change.kind,
        "id": change.id,
        "seq": change.seq,
        "deleted": change.body is None,
        "body": None if change.body is None else _body(change.kind, change.body),
        "private_bytes": len(change.private),
    }


def _body(kind: int, body: bytes) -> Any:
    """Return a body as JSON shows it; one that can not be read as its length."""
    try:
        if kind == Kind.KEY:
            entry = decode_entry(body)
            return {"seq": entry.seq, "at_s": entry.at_s, "answer_bytes": len(entry.body)}
        value = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return {"unreadable_bytes": len(body)}
    if isinstance(value, dict) and "password" in value:
        value["password"] = {"bytes": len(str(value["password"]).encode())}
    return value


def _answers(answers: bytes) -> int | None:
    """Return how many there are; None if that can not be read."""
    try:
        return len(msgspec.msgpack.decode(answers)) if answers else 0
    except (msgspec.MsgspecError, UnicodeDecodeError, TypeError):
        return None
