"""A Hugging Face hub on the loopback, as far as huggingface_hub needs it, with faults on demand."""

import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"
API = re.compile(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/[^/]+)?$")
FILE = re.compile(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)$")


class Hub(ThreadingHTTPServer):
    """Repositories of files, by hub id; `asked` is every request, as "GET /path".

    `refusals` holds, for a hub id or a file "owner/name/file", the status and headers to answer
    with, or None to close the connection. `cut` and `short` name files: the first breaks off after
    half of its bytes and is refused from then on; the second is served as if half of it were all.
    """

    daemon_threads = True

    def __init__(self, repositories: dict[str, dict[str, bytes]]):
        super().__init__(("127.0.0.1", 0), Answer)
        self.repositories = repositories
        self.asked: list[str] = []
        self.refusals: dict[str, tuple[int, dict] | None] = {}
        self.cut: set[str] = set()
        self.short: set[str] = set()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def served(repositories: dict[str, dict[str, bytes]]):
    """A hub that answers until the end of the block."""
    with Hub(repositories) as hub:
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        try:
            yield hub
        finally:
            hub.shutdown()


class Answer(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.path.partition("?")[0]
        self.server.asked.append(f"{self.command} {path}")
        if found := API.match(path):
            self.api(*found.groups())
        elif found := FILE.match(path):
            self.file(*found.groups())
        else:
            self.refuse(400, {})

    def api(self, hub_id: str, what: str | None):
        if hub_id in self.server.refusals:
            return self.refuse_as_told(hub_id)
        files = self.server.repositories.get(hub_id)
        if files is None:
            return self.refuse(404, {"X-Error-Code": "RepoNotFound"})
        if what == "tree":
            value = [
                {
                    "type": "file",
                    "path": name,
                    "size": len(content),
                    "oid": hashlib.sha1(content).hexdigest(),
                }
                for name, content in files.items()
            ]
        else:
            siblings = [{"rfilename": name} for name in files]
            value = {"id": hub_id, "modelId": hub_id, "sha": COMMIT, "siblings": siblings}
        self.give(json.dumps(value).encode(), {"Content-Type": "application/json"})

    def file(self, hub_id: str, name: str):
        place = f"{hub_id}/{name}"
        if place in self.server.refusals:
            return self.refuse_as_told(place)
        content = self.server.repositories[hub_id][name]
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
        half = content[: len(content) // 2]
        if self.command == "GET" and place in self.server.cut:
            self.server.refusals[place] = (503, {})
            self.give(half, headers, length=len(content))
            self.close_connection = True
        elif self.command == "GET" and place in self.server.short:
            self.give(half, headers)
        else:
            self.give(content, headers)

    def give(self, content: bytes, headers: dict, status: int = 200, length: int | None = None):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content) if length is None else length))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def refuse_as_told(self, place: str):
        told = self.server.refusals[place]
        if told is None:
            self.close_connection = True
        else:
            self.refuse(*told)

    def refuse(self, status: int, headers: dict):
        self.give(b"", headers, status)
