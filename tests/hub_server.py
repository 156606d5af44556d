"""A server on this machine that speaks the Hugging Face Hub's API, as far as downloads and commits need it.

Files with the suffixes of weights go through Git LFS, as on the hub: their content is put to an address of its own, and
the commit names its sha256.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

LARGE = (".safetensors", ".pt")


class Hub:
    """Repositories, each a list of commits: sha and files.

    Attributes:
        url: where it is reached.
        repositories: name to its commits, the newest last.
        asked: method, path and authorization of every request.
    """

    def __init__(self) -> None:
        self.url = ""
        self.repositories: dict[str, list[tuple[str, dict[str, bytes]]]] = {}
        self.private: set[str] = set()
        self.asked: list[tuple[str, str, str | None]] = []
        self.large: dict[str, bytes] = {}

    def commit(self, name: str, files: dict[str, bytes]) -> str:
        """Make a commit whose files are these."""
        commits = self.repositories.setdefault(name, [])
        sha = hashlib.sha1(f"{name} {len(commits)}".encode()).hexdigest()
        commits.append((sha, files))
        return sha

    def upload(self, name: str, folder: Path) -> str:
        """Make a commit of a folder's files."""
        return self.commit(
            name, {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        )

    def files(self, name: str) -> dict[str, bytes]:
        """Those of the newest commit."""
        return self.repositories[name][-1][1]

    def downloaded(self) -> list[str]:
        """Files whose content was asked for."""
        return sorted(path.split("/resolve/")[1].split("/", 1)[1] for verb, path, _ in self.asked if verb == "GET"
                      and "/resolve/" in path)  # fmt: skip


class RefusedError(Exception):
    def __init__(self, status: int, code: str) -> None:
        super().__init__(code)
        self.status, self.code = status, code


def _answers(hub: Hub, verb: str, path: str, body: bytes) -> tuple[dict[str, str], Any]:
    """Headers and content, bytes or what becomes JSON, of one request."""
    if path == "/api/repos/create":
        asked = json.loads(body)
        name = "/".join(filter(None, [asked.get("organization"), asked["name"]]))
        if name in hub.repositories:
            raise RefusedError(409, "")
        hub.commit(name, {".gitattributes": b""})
        hub.private |= {name} if asked.get("private") or asked.get("visibility") == "private" else set()
        return {}, {"url": f"{hub.url}/{name}", "name": name, "id": name}
    if path == "/api/validate-yaml":
        front = json.loads(body)["content"].split("---\n")[1]
        valid = isinstance(yaml.safe_load(front), dict)
        return {}, {"errors": [] if valid else [{"message": "front matter is no mapping"}], "warnings": []}
    if match := re.fullmatch(r"/lfs/(\w{64})", path):
        assert hashlib.sha256(body).hexdigest() == match[1]
        hub.large[match[1]] = body
        return {}, b""
    if match := re.fullmatch(r"/(.+)\.git/info/lfs/objects/batch", path):
        objects = [
            {**each, "actions": {"upload": {"href": f"{hub.url}/lfs/{each['oid']}"}}}
            for each in json.loads(body)["objects"]
        ]
        return {}, {"transfer": "basic", "objects": objects}
    if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(\w+)(?:/([^/]+))?)?", path):
        return {}, _of_repository(hub, match[1], match[2] or "revision", match[3], body)
    if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
        sha, files = _revision(hub, match[1], match[2])
        if match[3] not in files:
            raise RefusedError(404, "EntryNotFound")
        content = files[match[3]]
        return {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": sha}, content
    raise RefusedError(404, "")


def _revision(hub: Hub, name: str, revision: str | None) -> tuple[str, dict[str, bytes]]:
    if name not in hub.repositories:
        raise RefusedError(404, "RepoNotFound")
    commits = hub.repositories[name]
    if revision in (None, "main"):
        return commits[-1]
    found = [commit for commit in commits if commit[0] == revision]
    if not found:
        raise RefusedError(404, "RevisionNotFound")
    return found[0]


def _of_repository(hub: Hub, name: str, what: str, revision: str | None, body: bytes) -> Any:
    sha, files = _revision(hub, name, revision)
    if what == "revision":
        siblings = [{"rfilename": path} for path in sorted(files)]
        return {"id": name, "modelId": name, "sha": sha, "private": False, "tags": [], "siblings": siblings}
    if what == "tree":
        return [_entry(path, content) for path, content in sorted(files.items())]
    if what == "refs":
        return {"branches": [{"name": "main", "ref": "refs/heads/main", "targetCommit": sha}], "tags": [],
                "converts": []}  # fmt: skip
    if what == "preupload":
        modes = {True: "lfs", False: "regular"}
        asked = [file["path"] for file in json.loads(body)["files"]]
        return {"files": [{"path": p, "uploadMode": modes[p.endswith(LARGE)], "shouldIgnore": False} for p in asked]}
    assert what == "commit", what
    return _commit(hub, name, dict(files), body)


def _entry(path: str, content: bytes) -> dict[str, Any]:
    oid = hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
    entry = {"type": "file", "path": path, "size": len(content), "oid": oid}
    if path.endswith(LARGE):
        sha256 = hashlib.sha256(content).hexdigest()
        entry["lfs"] = {"oid": sha256, "sha256": sha256, "size": len(content), "pointerSize": 134}
    return entry


def _commit(hub: Hub, name: str, files: dict[str, bytes], body: bytes) -> dict[str, Any]:
    for line in body.splitlines():
        operation = json.loads(line)
        value = operation["value"]
        if operation["key"] == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif operation["key"] == "lfsFile":
            files[value["path"]] = hub.large[value["oid"]]
        elif operation["key"] == "deletedFile":
            del files[value["path"]]
        else:
            assert operation["key"] == "header"
    sha = hub.commit(name, files)
    return {"commitUrl": f"{hub.url}/{name}/commit/{sha}", "commitOid": sha, "success": True}


@contextlib.contextmanager
def serving() -> Iterator[Hub]:
    """An empty hub that answers within the block."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments: Any) -> None:
            pass

        def answer(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.asked.append((self.command, path, self.headers.get("Authorization")))
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            try:
                status, (headers, content) = 200, _answers(hub, self.command, path, body)
            except RefusedError as refused:
                status, headers = refused.status, {"X-Error-Code": refused.code}
                content = {"error": refused.code, "url": f"{hub.url}/is/there"}
            if not isinstance(content, bytes):
                headers, content = {**headers, "Content-Type": "application/json"}, json.dumps(content).encode()
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        do_GET = do_HEAD = do_POST = do_PUT = answer  # noqa: N815 (the names that the base class calls)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        hub.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield hub
        server.shutdown()
        thread.join()
