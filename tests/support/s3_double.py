"""A small S3 on this machine, with the faults of real storage on demand.

It keeps objects in memory. What the real client (s3fs) sends and fetches goes over real HTTP.
"""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

import pytest

BUCKET = "bucket"


@dataclass
class Request:
    """A request as the double sees it."""

    method: str
    key: str
    query: dict[str, str]
    range: str
    creates: bool = False  # If-None-Match: *

    @property
    def writes(self) -> bool:
        """Whether it changes what is stored."""
        return self.method in ("PUT", "DELETE", "POST")


@dataclass
class S3:
    """Objects by key, and what has been asked.

    Attributes:
        fault: what goes wrong with a request, empty for nothing: ``500``, ``503``, ``403``,
            ``reset`` (no answer; nothing done), ``lost`` (no answer, but done), ``slow`` (no answer
            for `slow_s`), ``cut`` (half of the bytes, then the end), ``torn`` (half of the bytes
            are stored, and said to be all), ``flip`` (a bit of what is stored is flipped).
        wait_s: pause before every answer, as real storage makes one.
        plain_tags: whether ETags are MD5 digests, as they are without the user's own keys.
        creates_once: whether ``If-None-Match: *`` is heeded.
    """

    url: str = ""
    objects: dict[str, bytes] = field(default_factory=dict)
    uploads: dict[str, dict[int, bytes]] = field(default_factory=dict)
    composed: dict[str, str] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    fault: Callable[[Request], str] = lambda _: ""
    slow_s: float = 3.0
    wait_s: float = 0.0
    plain_tags: bool = True
    creates_once: bool = True
    n_sent: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def tag(self, key: str) -> str:
        """The ETag of an object."""
        digest = self.composed.get(key) or hashlib.md5(self.objects[key]).hexdigest()
        return digest if self.plain_tags else hashlib.md5(digest.encode()).hexdigest()

    def below(self, prefix: str) -> dict[str, bytes]:
        """Objects below a prefix, by their names from there."""
        return {
            key.removeprefix(f"{prefix}/"): content
            for key, content in self.objects.items()
            if key.startswith(f"{prefix}/")
        }


@contextmanager
def running_s3() -> Iterator[S3]:
    """Start the double on a free port."""
    s3 = S3()
    server = _Server(("127.0.0.1", 0), _handler(s3))
    s3.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield s3
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def use(s3: S3, patched: pytest.MonkeyPatch) -> None:
    """Empty the double and point the environment at it, without long pauses."""
    from virchow_st.cloud import client

    fresh = S3(url=s3.url)
    for name in ("objects", "uploads", "composed", "requests", "fault", "slow_s", "plain_tags",
                 "creates_once"):  # fmt: skip
        setattr(s3, name, getattr(fresh, name))
    s3.n_sent = 0
    for name, value in (
        ("AWS_ENDPOINT_URL", s3.url), ("AWS_ACCESS_KEY_ID", "key"),
        ("AWS_SECRET_ACCESS_KEY", "secret"), ("AWS_DEFAULT_REGION", "us-east-1"),
        ("AWS_EC2_METADATA_DISABLED", "true"),
    ):  # fmt: skip
        patched.setenv(name, value)
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "HTTP_PROXY", "http_proxy"):
        patched.delenv(name, raising=False)
    for name, number in (
        ("WAIT_S", 0.01), ("TRIES", 3), ("S3_TRIES", 1), ("CONNECTION_TRIES", 1), ("READ_S", 60),
    ):  # fmt: skip
        patched.setattr(client, name, number)


class _Server(ThreadingHTTPServer):
    def handle_error(self, *arguments: Any) -> None:
        """Nothing: clients are killed on purpose."""


class _NoAnswerError(Exception):
    pass


def _handler(s3: S3) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments: Any) -> None:
            pass

        def _handle(self) -> None:
            parts = urlsplit(self.path)
            _, bucket, *rest = unquote(parts.path).split("/", 2)
            query = {k: v[0] for k, v in parse_qs(parts.query, keep_blank_values=True).items()}
            request = Request(
                self.command, rest[0] if rest else "", query, self.headers.get("Range", ""),
                self.headers.get("If-None-Match") == "*",
            )  # fmt: skip
            body = self._body()
            with s3.lock:
                s3.requests.append(request)
                fault = s3.fault(request)
            time.sleep(s3.wait_s)
            try:
                if fault == "slow":
                    time.sleep(s3.slow_s)
                    raise _NoAnswerError
                if fault == "reset":
                    raise _NoAnswerError
                if fault in ("403", "500", "503"):
                    code = {"403": "AccessDenied", "500": "InternalError", "503": "SlowDown"}[fault]
                    self._error(int(fault), code)
                    return
                if bucket != BUCKET:
                    self._error(404, "NoSuchBucket")
                    return
                if fault == "torn":
                    body = body[: len(body) // 2]
                elif fault == "flip" and body:
                    body = body[:-1] + bytes([body[-1] ^ 1])
                getattr(self, f"_{self.command.lower()}")(request, body, fault)
            except (_NoAnswerError, OSError):
                self.close_connection = True

        do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = _handle

        def _body(self) -> bytes:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if "aws-chunked" not in self.headers.get("Content-Encoding", ""):
                return body
            parts: list[bytes] = []
            at = 0
            while True:
                end = body.index(b"\r\n", at)
                size = int(body[at:end].partition(b";")[0], 16)
                if not size:
                    return b"".join(parts)
                parts.append(body[end + 2 : end + 2 + size])
                at = end + 2 + size + 2

        def _answer(self, code: int, body: bytes = b"", fault: str = "", **headers: str) -> None:
            if fault == "lost":
                raise _NoAnswerError
            self.send_response(code)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            if "Content_Length" not in headers:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if fault == "cut":
                self.wfile.write(body[: len(body) // 2])
                raise _NoAnswerError
            self.wfile.write(body)

        def _error(self, code: int, name: str) -> None:
            text = f"<Error><Code>{name}</Code><Message>{name} of the double</Message></Error>"
            self._answer(code, b"" if self.command == "HEAD" else text.encode())

        def _get(self, request: Request, body: bytes, fault: str) -> None:
            if "list-type" in request.query:
                self._list(request)
                return
            if request.key not in s3.objects:
                self._error(404, "NoSuchKey")
                return
            content, code, headers = s3.objects[request.key], 200, {}
            if found := re.fullmatch(r"bytes=(\d+)-(\d*)", request.range):
                start, end = int(found[1]), min(int(found[2] or len(content)), len(content) - 1)
                if start > end:
                    self._error(416, "InvalidRange")
                    return
                headers["Content_Range"] = f"bytes {start}-{end}/{len(content)}"
                content, code = content[start : end + 1], 206
            s3.n_sent += len(content)
            self._answer(code, content, fault, ETag=f'"{s3.tag(request.key)}"', **headers)

        def _head(self, request: Request, body: bytes, fault: str) -> None:
            if request.key not in s3.objects:
                self._error(404, "NoSuchKey")
                return
            size = str(len(s3.objects[request.key]))
            self._answer(
                200, b"", fault, ETag=f'"{s3.tag(request.key)}"', Content_Length=size,
                Last_Modified="Mon, 02 Nov 2026 10:00:00 GMT", Accept_Ranges="bytes",
            )  # fmt: skip

        def _put(self, request: Request, body: bytes, fault: str) -> None:
            if "uploadId" in request.query:
                number = int(request.query["partNumber"])
                s3.uploads[request.query["uploadId"]][number] = body
                tag = hashlib.md5(body).hexdigest()
            else:
                with s3.lock:
                    if request.creates and s3.creates_once and request.key in s3.objects:
                        is_refused = True
                    else:
                        is_refused = False
                        s3.objects[request.key] = body
                        s3.composed.pop(request.key, None)
                        tag = s3.tag(request.key)
                if is_refused:
                    self._error(412, "PreconditionFailed")
                    return
            self._answer(200, b"", fault, ETag=f'"{tag}"')

        def _delete(self, request: Request, body: bytes, fault: str) -> None:
            if "uploadId" in request.query:
                s3.uploads.pop(request.query["uploadId"], None)
            else:
                s3.objects.pop(request.key, None)
            self._answer(204, b"", fault)

        def _post(self, request: Request, body: bytes, fault: str) -> None:
            if "uploads" in request.query:
                name = f"u{len(s3.uploads)}"
                s3.uploads[name] = {}
                text = f"<UploadId>{name}</UploadId>"
            elif "uploadId" in request.query:
                parts = s3.uploads.pop(request.query["uploadId"])
                ordered = [parts[number] for number in sorted(parts)]
                s3.objects[request.key] = b"".join(ordered)
                digests = b"".join(hashlib.md5(part).digest() for part in ordered)
                s3.composed[request.key] = f"{hashlib.md5(digests).hexdigest()}-{len(ordered)}"
                text = f"<ETag>{s3.tag(request.key)}</ETag>"
            else:
                raise AssertionError(request)
            self._answer(200, f"<Result>{text}</Result>".encode(), fault)

        def _list(self, request: Request) -> None:
            prefix, mark = request.query.get("prefix", ""), request.query.get("delimiter", "")
            entries, folders = [], set()
            for key in sorted(s3.objects):
                if not key.startswith(prefix):
                    continue
                rest = key.removeprefix(prefix)
                if mark and mark in rest:
                    folders.add(prefix + rest.partition(mark)[0] + mark)
                    continue
                entries.append(
                    f"<Contents><Key>{escape(key)}</Key><Size>{len(s3.objects[key])}</Size>"
                    f'<ETag>"{s3.tag(key)}"</ETag><StorageClass>STANDARD</StorageClass>'
                    "<LastModified>2026-11-02T10:00:00.000Z</LastModified></Contents>"
                )
            entries += [
                f"<CommonPrefixes><Prefix>{escape(f)}</Prefix></CommonPrefixes>" for f in folders
            ]
            text = (
                f"<ListBucketResult><Name>{BUCKET}</Name><KeyCount>{len(entries)}</KeyCount>"
                f"<IsTruncated>false</IsTruncated>{''.join(entries)}</ListBucketResult>"
            )
            self._answer(200, text.encode())

    return Handler
