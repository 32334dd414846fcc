"""A small Hugging Face Hub on this machine: the part of its HTTP interface that a share needs.

It keeps whole commits in memory. What the real client sends and fetches goes over real HTTP.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit


class Hub:
    """Repositories of one kind, models: a list of commits each, every one a whole tree of files."""

    def __init__(self) -> None:
        self.commits: dict[str, list[dict[str, bytes]]] = {}
        self.private: dict[str, bool] = {}
        self.requests: list[str] = []
        self.breaks_at = ""  # requests that contain this are answered by an error
        self.url = ""

    def sha(self, repo: str, index: int = -1) -> str:
        index = range(len(self.commits[repo]))[index]
        return hashlib.sha1(f"{repo} {index}".encode()).hexdigest()

    def tree(self, repo: str, revision: str) -> dict[str, bytes]:
        for index, files in enumerate(self.commits[repo]):
            if self.sha(repo, index) == revision:
                return files
        assert revision == "main", revision
        return self.commits[repo][-1]

    def apply(self, repo: str, lines: list[dict[str, Any]]) -> None:
        files = dict(self.commits[repo][-1])
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        self.commits[repo].append(files)


@contextmanager
def running_hub() -> Iterator[Hub]:
    """Start the double on a free port; `Hub.url` is its address."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments: Any) -> None:
            pass

        def body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            found = b""
            while size := int(self.rfile.readline(), 16):
                found += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return found

        def answer(self, content: Any, code: int = 200, **headers: str) -> None:
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(code)
            kind = "application/octet-stream" if isinstance(content, bytes) else "application/json"
            headers = {"Content-Type": kind, "Content-Length": str(len(data)), **headers}
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def handle_any(self) -> None:
            path, body = unquote(urlsplit(self.path).path), self.body()
            hub.requests.append(f"{self.command} {path}")
            if hub.breaks_at and hub.breaks_at in path:
                return self.answer({"error": "not today"}, 403, X_Error_Message="not today")
            if path == "/api/repos/create":
                asked = json.loads(body)
                repo = f"{asked['organization']}/{asked['name']}"
                if repo in hub.commits:
                    return self.answer({"error": "it exists", "url": f"{hub.url}/{repo}"}, 409)
                hub.commits[repo] = [{".gitattributes": b""}]
                seen_by = "private" if asked.get("private") else asked.get("visibility")
                hub.private[repo] = seen_by == "private"
                return self.answer({"url": f"{hub.url}/{repo}"})
            if path == "/api/validate-yaml":
                return self.answer({"errors": [], "warnings": []})
            if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/main", path):
                asked = json.loads(body)["files"]
                modes = [
                    {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                    for f in asked
                ]
                return self.answer({"files": modes})
            if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path):
                hub.apply(found[1], [json.loads(line) for line in body.splitlines() if line])
                sha = hub.sha(found[1])
                url = f"{hub.url}/{found[1]}/commit/{sha}"
                return self.answer({"success": True, "commitOid": sha, "commitUrl": url})
            if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)/?", path):
                return self.answer(
                    [
                        {"type": "file", "path": name, "size": len(data),
                         "oid": hashlib.sha1(data).hexdigest()}
                        for name, data in hub.tree(found[1], found[2]).items()
                    ]
                )  # fmt: skip
            if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/[^/]+)?", path):
                if found[1] not in hub.commits:
                    return self.answer({}, 404, X_Error_Code="RepoNotFound")
                names = [{"rfilename": name} for name in hub.commits[found[1]][-1]]
                about = {"id": found[1], "sha": hub.sha(found[1]), "siblings": names}
                return self.answer(about)
            if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
                files = hub.tree(found[1], found[2])
                if found[3] not in files:
                    return self.answer({}, 404, X_Error_Code="EntryNotFound")
                data = files[found[3]]
                sha = found[2] if found[2] != "main" else hub.sha(found[1])
                etag = f'"{hashlib.sha1(data).hexdigest()}"'
                return self.answer(data, X_Repo_Commit=sha, ETag=etag)
            return self.answer({"error": f"{path}: the double does not know it"}, 501)

        do_GET = do_POST = do_HEAD = handle_any

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
