"""The part of the Hub's HTTP interface that an upload needs, on this machine."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class HubStandIn:
    """Keeps repositories in memory; whoever has the token may write.

    Args:
        token: what requests must carry.

    Attributes:
        address: its own, which clients insist on in what it answers.
        private: of every repository that was made.
        files: contents by repository and path, after the last commit.
    """

    def __init__(self, token: str) -> None:
        self.token = token
        self.address = ""
        self.private: dict[str, bool] = {}
        self.files: dict[str, dict[str, bytes]] = {}

    def answer(self, path: str, token: str, body: bytes) -> tuple[int, Any]:
        """Return status and JSON."""
        if token != f"Bearer {self.token}":
            return 401, {"error": "Invalid username or password."}
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
            self.private[name] = asked.get("visibility") == "private"
            return 200, {"url": f"{self.address}/{name}", "name": name, "id": name}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        repository, _, action = (
            path.removeprefix("/api/models/").rpartition("/main")[0].rpartition("/")
        )
        if repository not in self.private:
            return 404, {"error": "Repository not found"}
        if action == "preupload":
            names = [file["path"] for file in json.loads(body)["files"]]
            modes = [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]
            return 200, {"files": modes}
        assert action == "commit"
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                content = base64.b64decode(line["value"]["content"])
                self.files.setdefault(repository, {})[line["value"]["path"]] = content
        url = f"{self.address}/{repository}/commit/{'a' * 40}"
        return 200, {"success": True, "commitOid": "a" * 40, "commitUrl": url}


@contextmanager
def serving(hub: HubStandIn) -> Iterator[str]:
    """Serve it and give its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            token = self.headers.get("Authorization") or ""
            status, values = hub.answer(self.path.partition("?")[0], token, body)
            content = json.dumps(values).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        hub.address = f"http://127.0.0.1:{server.server_port}"
        yield hub.address
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
