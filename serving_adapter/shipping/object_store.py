"""S3-compatible stores, as far as an archive needs one: an object is put, and read back. AWS signature version 4.

`s3://BUCKET/PREFIX`, with `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, perhaps `AWS_SESSION_TOKEN`, `AWS_REGION` and
`AWS_ENDPOINT_URL`; the latter two also in the address: `s3://BUCKET/PREFIX?endpoint=http://127.0.0.1:9000&region=eu-1`.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import http.client
import os
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Final
from urllib.parse import parse_qs, quote, urlsplit

from serving_adapter.settings import SettingsError

WITHIN_S: Final = 60.0
_SIGNED: Final = "host;x-amz-content-sha256;x-amz-date"


class ObjectStore:
    """A bucket's prefix."""

    def __init__(
        self, where: str, environ: Mapping[str, str] = os.environ,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:  # fmt: skip
        """Raises SettingsError."""
        parts = urlsplit(where)
        asked = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        if parts.scheme != "s3" or not parts.netloc or set(asked) - {"endpoint", "region"}:
            raise SettingsError(f"{where!r} is not s3://BUCKET/PREFIX[?endpoint=…&region=…]")
        missing = [n for n in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY") if not environ.get(n)]
        if missing:
            raise SettingsError(f"{missing[0]} is not set: an archive in {where} needs it")
        self._region = asked.get("region") or environ.get("AWS_REGION") or "us-east-1"
        endpoint = (
            asked.get("endpoint") or environ.get("AWS_ENDPOINT_URL") or f"https://s3.{self._region}.amazonaws.com"
        )
        self._endpoint = urlsplit(endpoint)
        if self._endpoint.scheme not in ("http", "https") or not self._endpoint.hostname:
            raise SettingsError(f"{endpoint!r} is not an address of an S3 server")
        self._root = f"/{parts.netloc}/{parts.path.strip('/')}".rstrip("/")
        self._key_id, self._secret = environ["AWS_ACCESS_KEY_ID"], environ["AWS_SECRET_ACCESS_KEY"]
        self._token = environ.get("AWS_SESSION_TOKEN")
        self._now = now

    def put(self, name: str, data: bytes) -> None:
        """Store an object. Raises OSError."""
        self._call("PUT", name, data)

    def get(self, name: str) -> bytes:
        """An object. Raises OSError."""
        return self._call("GET", name, b"")

    def _call(self, method: str, name: str, data: bytes) -> bytes:
        path = quote(f"{self._root}/{name}", safe="/-_.~")
        host = self._endpoint.hostname or ""
        kind = http.client.HTTPSConnection if self._endpoint.scheme == "https" else http.client.HTTPConnection
        with contextlib.closing(kind(host, self._endpoint.port, timeout=WITHIN_S)) as connection:
            try:
                connection.request(method, path, data or None, self._headers(method, path, data))
                answer = connection.getresponse()
                found = answer.read()
            except http.client.HTTPException as error:
                raise OSError(f"{method} {path}: {error or type(error).__name__}") from None
        if answer.status != 200:
            raise OSError(f"{method} {path}: {answer.status} {found[:300].decode('utf-8', 'replace')}")
        return found

    def _headers(self, method: str, path: str, data: bytes) -> dict[str, str]:
        """A request's, with its signature."""
        at = self._now().strftime("%Y%m%dT%H%M%SZ")
        digest = hashlib.sha256(data).hexdigest()
        host = self._endpoint.netloc.rpartition("@")[2]
        canonical = f"{method}\n{path}\n\nhost:{host}\nx-amz-content-sha256:{digest}\nx-amz-date:{at}\n"
        signed = _SIGNED
        if self._token:
            canonical += f"x-amz-security-token:{self._token}\n"
            signed += ";x-amz-security-token"
        canonical += f"\n{signed}\n{digest}"
        scope = f"{at[:8]}/{self._region}/s3/aws4_request"
        to_sign = f"AWS4-HMAC-SHA256\n{at}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
        key = b"AWS4" + self._secret.encode()
        for part in scope.split("/"):
            key = hmac.new(key, part.encode(), hashlib.sha256).digest()
        signature = hmac.new(key, to_sign.encode(), hashlib.sha256).hexdigest()
        credential = f"Credential={self._key_id}/{scope}, SignedHeaders={signed}, Signature={signature}"
        headers = {"host": host, "x-amz-content-sha256": digest, "x-amz-date": at}
        if self._token:
            headers["x-amz-security-token"] = self._token
        return {**headers, "authorization": f"AWS4-HMAC-SHA256 {credential}"}
