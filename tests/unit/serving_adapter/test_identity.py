"""Identity and content, against vectors that were made without this code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from serving_adapter.events import decode
from serving_adapter.identity import content_digest_of, event_id_of, event_id_text_of, identity_of

VECTORS = json.loads((Path(__file__).parents[3] / "schemas" / "identity_vectors.v1.json").read_text())["vectors"]


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_an_event_has_the_identity_and_content_of_its_vector(vector: dict[str, Any]) -> None:
    event = decode(json.dumps(vector["event"]).encode())
    identity = identity_of(event)
    assert list(identity) == vector["identity"]
    assert str(event_id_of(identity)) == event_id_text_of(identity) == vector["event_id"]
    assert content_digest_of(event).hex() == vector["content_digest"]


def test_the_vectors_tell_identity_from_content() -> None:
    by_name = {vector["name"]: vector for vector in VECTORS}
    first = by_name["the platform's published event"]
    for name in ("other timestamp, same identity and content", "default written out"):
        assert by_name[name]["event_id"] == first["event_id"]
        assert by_name[name]["content_digest"] == first["content_digest"]
    for name in ("other count, same identity", "engine counted otherwise"):
        assert by_name[name]["event_id"] == first["event_id"]
        assert by_name[name]["content_digest"] != first["content_digest"]
    assert by_name["second attempt"]["event_id"] != first["event_id"]
