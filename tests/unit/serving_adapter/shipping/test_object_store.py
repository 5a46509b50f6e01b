"""Segments in a store that speaks S3."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from moto.server import ThreadedMotoServer

from serving_adapter.settings import SettingsError
from serving_adapter.shipping.archive import Archive, ArchiveFailed
from serving_adapter.shipping.object_store import ObjectStore
from serving_adapter.shipping.position import Shipped
from serving_adapter.spool.folders import BootFolder
from tests.adapter_builders import ended, open_journal

KEYS = {
    "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
}


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


def closed_boot(root: Path) -> BootFolder:
    journal = open_journal(root)
    journal.end(journal.start_now(ended("q1")), ended("q1"))
    journal.close()
    return journal.folder


def test_a_segment_leaves_the_disk_once_its_copy_in_the_store_was_read_back(
    tmp_path: Path, endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    where = f"s3://spools/a b/eu?endpoint={endpoint}&region=us-east-1"
    boot = closed_boot(tmp_path)
    data = boot.segment(1).read_bytes().rstrip(b"\0")
    with pytest.raises(ArchiveFailed, match="404"):
        Archive.at(where).take(boot, Shipped(done=True))
    assert boot.segments() == [1]
    ObjectStore(f"s3://spools?endpoint={endpoint}").put("", b"")  # makes the bucket
    assert Archive.at(where).take(boot, Shipped(done=True)) == 1
    assert boot.segments() == []
    name = f"{boot.path.parent.name}/{boot.path.name}/00000001.seg"
    assert ObjectStore(where).get(name) == data


def test_a_copy_that_is_not_what_was_written_frees_nothing(tmp_path: Path) -> None:
    class Forgets:
        def put(self, name: str, data: bytes) -> None: ...

        def get(self, name: str) -> bytes:
            return b""

    boot = closed_boot(tmp_path)
    with pytest.raises(ArchiveFailed, match="is not what was written"):
        Archive(Forgets()).take(boot, Shipped(done=True))
    assert boot.segments() == [1]


@pytest.mark.parametrize("token", [None, "session"])
def test_signatures_are_those_of_amazons_own_client(token: str | None) -> None:
    data, path = b"frames", "/spools/a%20b/r1/00000001.seg"
    request = AWSRequest("PUT", f"https://s3.eu-1.example:9000{path}", data=data)
    credentials = Credentials(KEYS["AWS_ACCESS_KEY_ID"], KEYS["AWS_SECRET_ACCESS_KEY"], token)
    S3SigV4Auth(credentials, "s3", "eu-1").add_auth(request)
    at = datetime.strptime(request.headers["X-Amz-Date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    environ = KEYS | ({"AWS_SESSION_TOKEN": token} if token else {})
    store = ObjectStore("s3://spools/a b?endpoint=https://s3.eu-1.example:9000&region=eu-1", environ, lambda: at)
    assert store._headers("PUT", path, data)["authorization"] == request.headers["Authorization"]


def test_an_address_that_is_none_is_refused() -> None:
    for where in ("s3:///x", "s3://b?colour=red", "s3://b?endpoint=ftp://x"):
        with pytest.raises(SettingsError):
            ObjectStore(where, KEYS)
    with pytest.raises(SettingsError, match="AWS_ACCESS_KEY_ID"):
        ObjectStore("s3://b", {})
