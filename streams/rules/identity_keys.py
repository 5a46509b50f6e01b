"""The key under which an identity is stored: 16 bytes that keep the index's busy end small (docs/spec/metering.md 4.2).

A UUIDv7 carries the time it was minted. Its key begins with that time, so that new keys lie beside each other, whatever
the events' own timestamps; other ids are spread by their hash over a half of their own. The rest of the key is a hash
of the whole identity: 80 bits beside the same millisecond, 127 bits otherwise.
"""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache
from typing import Final

from serving_adapter.identity import Identity

KEY_BYTES: Final = 16
_UUID7: Final = re.compile(
    r"[0-7][0-9a-f]{7}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", re.IGNORECASE | re.ASCII
).fullmatch
"""Until the year 6429; whatever claims to be later is no UUIDv7 here."""
_OTHER: Final = 0x80
NUMBERED_BY_BYTES: Final = 8


def minted(request_id: str) -> bytes | None:
    """The six bytes of a UUIDv7 that say when it was minted, in milliseconds since 1970; None for any other id."""
    return bytes.fromhex(request_id[:8] + request_id[9:13]) if _UUID7(request_id) else None


def identity_key(identity: Identity) -> bytes:
    """The identity's key; `usage.identity_key` is the same in SQL."""
    tenant_id, request_id, attempt, kind, correction_no = identity
    named = f"{request_id}\0{tenant_id}\0{attempt}\0{kind}\0{correction_no}"
    digest = hashlib.sha256(named.encode()).digest()
    if (time := minted(request_id)) is not None:
        return time + digest[: KEY_BYTES - len(time)]
    return bytes((digest[0] | _OTHER,)) + digest[1:KEY_BYTES]


def numbered_by(replica_id: str | None, boot_id: str | None, seq: int | None) -> bytes | None:
    """Eight bytes for who numbered an event, if anybody did: an event without a number is nobody's."""
    return _numberer(replica_id, boot_id) if replica_id and boot_id and seq is not None else None


@lru_cache(maxsize=4096)
def _numberer(replica_id: str, boot_id: str) -> bytes:
    return hashlib.sha256(f"{replica_id}\0{boot_id}".encode()).digest()[:NUMBERED_BY_BYTES]
