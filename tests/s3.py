"""An S3 server of the tests: moto, a process on loopback. It checks keys and permissions only in `refusing_others`."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from uuid import uuid4

import httpx

START_S = 60


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


class S3:
    """An S3 server."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._http = httpx.Client(base_url=url, trust_env=False, timeout=60)

    def new_bucket(self) -> str:
        """Create a bucket, and return the URL of a prefix in it."""
        name = f"b-{uuid4()}"
        self._http.put(f"/{name}").raise_for_status()
        return self.storage_url(f"{name}/pre/fix")

    def storage_url(self, path: str) -> str:
        return f"s3://{path}?endpoint={self.url}&region=auto"

    def read(self, storage_url: str, path: str) -> bytes | None:
        """Return an object below a prefix, or None."""
        answer = self._http.get(f"/{_place(storage_url)}/{path}", headers=_signed_for("s3"))
        return None if answer.status_code == 404 else answer.raise_for_status().content

    def list(self, storage_url: str) -> set[str]:
        """Return the paths of all objects below a prefix."""
        bucket, _, prefix = f"{_place(storage_url)}/".partition("/")
        found: set[str] = set()
        token: dict[str, str] = {}
        while True:
            params = {"list-type": "2", "prefix": prefix, **token}
            answer = self._http.get(f"/{bucket}", params=params).raise_for_status().text
            found.update(name.removeprefix(prefix) for name in re.findall("<Key>(.+?)</Key>", answer))
            following = re.search("<NextContinuationToken>(.+?)</NextContinuationToken>", answer)
            if following is None:
                return found
            token = {"continuation-token": following[1]}

    def unfinished_uploads(self, storage_url: str) -> int:
        """Return how many uploads in parts a bucket has, which a listing does not show."""
        bucket = _place(storage_url).partition("/")[0]
        answer = self._http.get(f"/{bucket}", params="uploads").raise_for_status().text
        assert "ListMultipartUploadsResult" in answer
        return answer.count("<Upload>")

    def delete(self, url: str) -> None:
        """Delete an object."""
        self._http.delete(url.partition("?")[0], headers=_signed_for("s3")).raise_for_status()

    def new_key(self, *actions: str) -> tuple[str, str]:
        """Create a key that may do these actions only, and return its id and secret."""
        user = f"u-{uuid4()}"
        statement = {"Effect": "Allow", "Action": list(actions), "Resource": "*"}
        policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
        self._iam("CreateUser", UserName=user)
        self._iam("PutUserPolicy", UserName=user, PolicyName="p", PolicyDocument=policy)
        made = self._iam("CreateAccessKey", UserName=user)
        key_id, secret = (re.findall(f"<{name}>(.+)</{name}>", made)[0] for name in ("AccessKeyId", "SecretAccessKey"))
        return key_id, secret

    @contextmanager
    def refusing_others(self) -> Iterator[None]:
        """Refuse requests that are not signed with a key of `new_key`, and what that key may not do."""
        self._http.post("/moto-api/reset-auth", content="0").raise_for_status()
        try:
            yield
        finally:
            self._http.post("/moto-api/reset-auth", content="inf").raise_for_status()

    def _iam(self, action: str, **fields: str) -> str:
        data = {"Action": action, "Version": "2010-05-08", **fields}
        return self._http.post("/", data=data, headers=_signed_for("iam")).raise_for_status().text


def _place(storage_url: str) -> str:
    """Return the bucket and the prefix."""
    return storage_url.removeprefix("s3://").partition("?")[0]


def _signed_for(service: str) -> dict[str, str]:
    scope = f"x/20260101/us-east-1/{service}/aws4_request"
    return {"Authorization": f"AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders=host, Signature=x"}


@contextmanager
def running_s3() -> Iterator[S3]:
    """Run a server."""
    port = free_port()
    with listening([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], port):
        yield S3(f"http://127.0.0.1:{port}")


@contextmanager
def listening(command: Sequence[str], port: int) -> Iterator[None]:
    """Run a server on a port, from when it accepts connections."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            deadline = time.monotonic() + START_S
            while True:
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                assert server.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.02)
            yield
        finally:
            server.kill()
