"""A small Hub on loopback: model repositories, commits, large files by LFS, tokens; kept in memory.

    with HubServer() as hub:
        run(..., env={"HF_ENDPOINT": hub.url, "HF_TOKEN": WRITER})

Repositories are made and filled over HTTP, or by a test itself with `hub.commit(repo_id, {path: content})`, also with
content that no client would send. `hub.log` holds the requests. `hub.drop[path] = n` breaks off the next download of
a file after n bytes.
"""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

WRITER, READER = "hf_writer", "hf_reader"  # tokens; anything else is a wrong one
USERS = {WRITER: "writer", READER: "reader"}
LARGE = 10_000  # bytes from which a file goes by LFS


class Commit(NamedTuple):
    oid: str
    message: str
    files: dict[str, bytes]


class Repository:
    def __init__(self, private: bool = False):
        self.private = private
        first = Commit("0" * 40, "initial commit", {})
        self.commits, self.branches = {first.oid: first}, {"main": first}

    def at(self, revision: str) -> Commit | None:
        """The commit of a branch or with that hash."""
        return self.branches.get(revision) or self.commits.get(revision)

    def commit(
        self, branch: str, files: dict[str, bytes], deleted: set[str] = frozenset(), message: str = ""
    ) -> Commit:
        parent = self.branches[branch]
        kept = {path: content for path, content in parent.files.items() if path not in deleted}
        seed = json.dumps([parent.oid, len(self.commits), sorted(files)])
        commit = Commit(hashlib.sha1(seed.encode()).hexdigest(), message, kept | files)
        self.commits[commit.oid] = self.branches[branch] = commit
        return commit


class HubError(Exception):
    """An answer that is no success."""

    def __init__(self, status: int, message: str, code: str = ""):
        super().__init__(message)
        self.status, self.code = status, code


class HubServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repositories: dict[str, Repository] = {}
        self.large_files: dict[str, bytes] = {}
        self.log: list[tuple[str, str, str | None]] = []  # method, path, range asked for
        self.drop: dict[str, int] = {}

    def __enter__(self):
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()

    def handle_error(self, request, client_address):
        """A client that hangs up is no news."""

    def commit(self, repo_id: str, files: dict[str, bytes]) -> Commit:
        return self.repositories.setdefault(repo_id, Repository()).commit("main", files)


class Handler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        """Requests are kept in `server.log`, not printed."""

    def answer(self):
        path = urlsplit(self.path).path
        self.server.log.append((self.command, unquote(path), self.headers.get("Range")))
        body = self.read_body()
        try:
            for method, pattern, action in ROUTES:
                found = re.fullmatch(pattern, path)
                if method == self.command and found:
                    return action(self, body, **{name: unquote(text) for name, text in found.groupdict().items()})
            raise HubError(404, f"no such route: {self.command} {path}")
        except HubError as error:
            self.send_json(
                {"error": str(error)}, error.status, {"X-Error-Message": str(error), "X-Error-Code": error.code}
            )

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer  # noqa: N815

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def send_json(self, value, status: int = 200, headers: dict[str, str] | None = None):
        self.send_bytes(json.dumps(value).encode(), status, {"Content-Type": "application/json", **(headers or {})})

    def send_bytes(self, content: bytes, status: int, headers: dict[str, str], cut_after: int | None = None):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[:cut_after])
        if cut_after is not None:
            self.wfile.flush()
            self.close_connection = True

    # Who asks, and for what

    def user(self) -> str | None:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token and token not in USERS:
            raise HubError(401, "Invalid credentials in Authorization header")
        return USERS.get(token)

    def repository(self, repo_id: str, write: bool = False) -> Repository:
        user, repository = self.user(), self.server.repositories.get(repo_id)
        if repository is None or (repository.private and user != repo_id.split("/")[0]):
            raise HubError(404 if user else 401, "Repository not found", "RepoNotFound")
        if write and user is None:
            raise HubError(401, "Invalid username or password.")
        if write and user != repo_id.split("/")[0]:
            raise HubError(403, "Forbidden: you have no write access to this repository.")
        return repository

    def revision(self, repo_id: str, revision: str) -> Commit:
        commit = self.repository(repo_id).at(revision)
        if commit is None:
            raise HubError(404, "Revision not found", "RevisionNotFound")
        return commit

    # Routes

    def whoami(self, _):
        if self.user() is None:
            raise HubError(401, "Invalid credentials in Authorization header")
        self.send_json({"type": "user", "name": self.user(), "auth": {"accessToken": {"role": "write"}}, "orgs": []})

    def create(self, body: bytes):
        asked = json.loads(body)
        user = self.user()
        if user is None:
            raise HubError(401, "Invalid username or password.")
        repo_id = f"{asked.get('organization') or user}/{asked['name']}"
        if repo_id.split("/")[0] != user:
            raise HubError(
                403, f"You don't have the rights to create a model under the namespace {asked['organization']!r}."
            )
        answer = {"url": f"{self.server.url}/{repo_id}", "name": repo_id, "id": repo_id}
        if repo_id in self.server.repositories:
            return self.send_json({"error": "You already created this model repo", **answer}, 409)
        self.server.repositories[repo_id] = Repository(asked.get("visibility") == "private")
        self.send_json(answer)

    def validate_yaml(self, _):
        self.send_json({"errors": [], "warnings": []})

    def preupload(self, body: bytes, repo_id: str, revision: str):
        there = self.repository(repo_id, write=True).branches[revision].files
        files = json.loads(body)["files"]
        answers = [
            {
                "path": asked["path"],
                "uploadMode": "lfs" if asked["size"] >= LARGE else "regular",
                "shouldIgnore": False,
                "oid": etag(there[asked["path"]]) if asked["path"] in there else None,
            }
            for asked in files
        ]
        self.send_json({"files": answers})

    def create_branch(self, _, repo_id: str, revision: str):
        repository = self.repository(repo_id, write=True)
        repository.branches.setdefault(revision, repository.branches["main"])
        self.send_json({})

    def lfs_batch(self, body: bytes, repo_id: str):
        self.repository(repo_id, write=True)
        objects = [{"oid": asked["oid"], "size": asked["size"]} for asked in json.loads(body)["objects"]]
        for one in objects:
            if one["oid"] not in self.server.large_files:
                one["actions"] = {"upload": {"href": f"{self.server.url}/lfs/{one['oid']}"}}
        self.send_json({"transfer": "basic", "objects": objects})

    def lfs_put(self, body: bytes, oid: str):
        if hashlib.sha256(body).hexdigest() != oid:
            raise HubError(400, "The content does not have the hash that was announced.")
        self.server.large_files[oid] = body
        self.send_json({})

    def commit(self, body: bytes, repo_id: str, revision: str):
        repository = self.repository(repo_id, write=True)
        files, deleted, message = {}, set(), ""
        for line in body.splitlines():
            kind, value = json.loads(line)["key"], json.loads(line)["value"]
            if kind == "header":
                message = value["summary"]
            elif kind == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif kind == "lfsFile":
                files[value["path"]] = self.server.large_files[value["oid"]]
            else:
                deleted.add(value["path"])
        oid = repository.commit(revision, files, deleted, message).oid
        url = f"{self.server.url}/{repo_id}/commit/{oid}"
        self.send_json({"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": ""})

    def info(self, _, repo_id: str, revision: str = "main"):
        commit = self.revision(repo_id, revision)
        siblings = [{"rfilename": path} for path in commit.files]
        private = self.server.repositories[repo_id].private
        self.send_json({"id": repo_id, "sha": commit.oid, "private": private, "siblings": siblings, "tags": []})

    def tree(self, _, repo_id: str, revision: str):
        files = self.revision(repo_id, revision).files.items()
        self.send_json(
            [{"type": "file", "path": path, "size": len(content), **git_oid(content)} for path, content in files]
        )

    def resolve(self, _, repo_id: str, revision: str, path: str):
        commit = self.revision(repo_id, revision)
        if path not in commit.files:
            raise HubError(404, "Entry not found", "EntryNotFound")
        content = commit.files[path]
        headers = {"X-Repo-Commit": commit.oid, "ETag": f'"{etag(content)}"', "Accept-Ranges": "bytes"}
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        start = int(asked[1]) if asked else 0
        if asked:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        cut_after = self.server.drop.pop(path, None) if self.command == "GET" else None
        self.send_bytes(content[start:], 206 if asked else 200, headers, cut_after)


def etag(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest() if len(content) >= LARGE else git_oid(content)["oid"]


def git_oid(content: bytes) -> dict:
    oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    lfs = {"lfs": {"oid": etag(content), "size": len(content), "pointerSize": 134}} if len(content) >= LARGE else {}
    return {"oid": oid, **lfs}


REPO, REV = r"(?P<repo_id>[^/]+/[^/]+?)", r"(?P<revision>[^/]+)"
ROUTES = [
    ("GET", "/api/whoami-v2", Handler.whoami),
    ("POST", "/api/repos/create", Handler.create),
    ("POST", "/api/validate-yaml", Handler.validate_yaml),
    ("POST", f"/api/models/{REPO}/preupload/{REV}", Handler.preupload),
    ("POST", f"/api/models/{REPO}/branch/{REV}", Handler.create_branch),
    ("POST", rf"/{REPO}\.git/info/lfs/objects/batch", Handler.lfs_batch),
    ("PUT", "/lfs/(?P<oid>[0-9a-f]{64})", Handler.lfs_put),
    ("POST", f"/api/models/{REPO}/commit/{REV}", Handler.commit),
    ("GET", f"/api/models/{REPO}", Handler.info),
    ("GET", f"/api/models/{REPO}/revision/{REV}", Handler.info),
    ("GET", f"/api/models/{REPO}/tree/{REV}", Handler.tree),
    *((method, f"/{REPO}/resolve/{REV}/(?P<path>.+)", Handler.resolve) for method in ("GET", "HEAD")),
]
