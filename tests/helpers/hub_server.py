"""A Hub on loopback for tests: repositories, commits, branches, pull requests and LFS, in memory, standard library only.

Written from the requests that `huggingface_hub` makes. It keeps what it was sent (`log`), knows who may do what (`users`),
and can be told to fail (`fail`). It speaks LFS, not Xet: clients set HF_HUB_DISABLE_XET=1.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import json
import re
import threading
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

LFS_SUFFIXES = (".safetensors", ".bin", ".png", ".npy")
KINDS = {"models": "model", "datasets": "dataset", "spaces": "space"}


@dataclass
class File:
    data: bytes
    lfs: bool

    @property
    def oid(self) -> str:
        if self.lfs:
            return hashlib.sha256(self.data).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(self.data) + self.data).hexdigest()


@dataclass
class Commit:
    files: dict[str, File]
    title: str
    parent: str | None
    oid: str


@dataclass
class Repo:
    kind: str
    name: str
    private: bool = False
    sdk: str | None = None
    commits: dict[str, Commit] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    pull_requests: int = 0

    def add(self, ref: str, files: dict[str, File], title: str, parent: str | None) -> str:
        text = json.dumps([title, parent, {path: file.oid for path, file in files.items()}, len(self.commits)])
        oid = hashlib.sha1(text.encode()).hexdigest()
        self.commits[oid] = Commit(files, title, parent, oid)
        self.refs[ref] = oid
        return oid

    def resolve(self, revision: str) -> str | None:
        for known in (self.refs, self.tags):
            if revision in known:
                return known[revision]
        return revision if revision in self.commits else None


@dataclass
class Failure:
    """The next `times` requests whose "METHOD /path" matches are answered with `status`, or cut off after `cut` bytes."""

    pattern: str
    status: int = 500
    times: int = 1
    cut: int | None = None


@dataclass
class Request:
    method: str
    path: str
    body: bytes
    authorization: str | None
    """Kept apart, so that a test can look for a token anywhere else."""


class Hub:
    """The server and its state. `users`: token -> (name, may write)."""

    def __init__(self) -> None:
        self.users = {
            "hf_writer_token": ("ana", True),
            "hf_reader_token": ("ana", False),
            "hf_other_token": ("bob", True),
        }
        self.repos: dict[tuple[str, str], Repo] = {}
        self.lfs: dict[str, bytes] = {}
        self.log: list[Request] = []
        self.failures: list[Failure] = []
        self.lock = threading.RLock()

    @property
    def url(self) -> str:
        return address()

    @contextlib.contextmanager
    def serve(self) -> Iterator[Hub]:
        """This hub is what answers at `address()`."""
        server = _listening()
        server.RequestHandlerClass.hub = self
        try:
            yield self
        finally:
            server.RequestHandlerClass.hub = Hub()

    def fail(self, pattern: str, status: int = 500, times: int = 1, cut: int | None = None) -> None:
        self.failures.append(Failure(pattern, status, times, cut))

    def repo(self, name: str, kind: str = "model") -> Repo:
        return self.repos[kind, name]

    def files(self, name: str, kind: str = "model", revision: str = "main") -> dict[str, bytes]:
        repo = self.repos[kind, name]
        return {path: file.data for path, file in repo.commits[repo.resolve(revision)].files.items()}

    def write(self, name: str, path: str, data: bytes, kind: str = "model") -> None:
        """What a person does in the browser: put a file into main."""
        repo = self.repos.setdefault((kind, name), Repo(kind, name))
        parent = repo.refs.get("main")
        files = dict(repo.commits[parent].files) if parent else {}
        repo.add("main", files | {path: File(data, path.endswith(LFS_SUFFIXES))}, f"Upload {path}", parent)

    def requests(self, pattern: str) -> list[Request]:
        return [request for request in self.log if re.search(pattern, f"{request.method} {request.path}")]


class _Refused(Exception):
    def __init__(self, status: int, message: str, code: str | None = None):
        super().__init__(message)
        self.status, self.code = status, code


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args) -> None:
        pass

    def handle_one(self) -> None:
        path, _, query = self.path.partition("?")
        self.query = urllib.parse.parse_qs(query)
        self.clean = urllib.parse.unquote(path)
        failure = self._failure(f"{self.command} {self.clean}")
        if failure is not None and failure.cut is not None:
            self.rfile.read(failure.cut)
            self.close_connection = True
            self.connection.close()
            return
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self._chunked() if self.headers.get("Transfer-Encoding") == "chunked" else self.rfile.read(length)
        authorization = self.headers.get("Authorization")
        with self.hub.lock:
            self.hub.log.append(Request(self.command, self.path, self.body, authorization))
            if failure is not None:
                self._answer(failure.status, {"error": "told to fail"})
                return
            try:
                self._route()
            except _Refused as refusal:
                headers = {"X-Error-Message": str(refusal)} | ({"X-Error-Code": refusal.code} if refusal.code else {})
                self._answer(refusal.status, {"error": str(refusal)}, headers)

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = handle_one

    def _failure(self, text: str) -> Failure | None:
        with self.hub.lock:
            for failure in self.hub.failures:
                if failure.times and re.search(failure.pattern, text):
                    failure.times -= 1
                    return failure
        return None

    def _chunked(self) -> bytes:
        parts = []
        while size := int(self.rfile.readline().strip() or b"0", 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _answer(self, status: int, content: object, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        headers = {"Content-Type": "application/json", "Content-Length": str(len(data))} | (headers or {})
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    # Who

    @property
    def user(self) -> tuple[str, bool] | None:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token and token not in self.hub.users:
            raise _Refused(401, "Invalid credentials in Authorization header")
        return self.hub.users.get(token)

    def _may_write(self, owner: str) -> None:
        if self.user is None:
            raise _Refused(401, "Invalid username or password.")
        if self.user[0] != owner or not self.user[1]:
            raise _Refused(403, f"You don't have the rights to write into the namespace {owner}")

    def _repo(self, kind: str, name: str) -> Repo:
        repo = self.hub.repos.get((kind, name))
        if repo is None or (repo.private and (self.user is None or self.user[0] != name.split("/")[0])):
            status = 404 if self.user else 401
            raise _Refused(status, "Repository not found", "RepoNotFound")
        return repo

    # What

    def _route(self) -> None:
        path, method = self.clean, self.command
        if path == "/api/repos/create" and method == "POST":
            return self._create()
        if path == "/api/repos/delete" and method == "DELETE":
            return self._delete()
        if path == "/api/whoami-v2":
            if self.user is None:
                raise _Refused(401, "Invalid username or password.")
            role = "write" if self.user[1] else "read"
            return self._answer(200, {"type": "user", "name": self.user[0], "orgs": [],
                                      "auth": {"type": "access_token", "accessToken": {"role": role}}})  # fmt: skip
        if path == "/api/validate-yaml":
            return self._answer(200, {"errors": [], "warnings": []})
        if path.startswith("/lfs/"):
            return self._lfs_object(path.removeprefix("/lfs/"))
        if found := re.fullmatch(r"/api/(models|datasets|spaces)/([^/]+/[^/]+)(?:/(.*))?", path):
            kind, name, rest = KINDS[found[1]], found[2], found[3] or ""
            return self._api(kind, name, rest)
        if found := re.fullmatch(r"/(?:(datasets|spaces)/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            return self._lfs_batch(found[2])
        if found := re.fullmatch(
            r"/(?:(datasets|spaces)/)?([^/]+/[^/]+)/(?:resolve|raw)/((?:refs/pr/)?[^/]+)/(.+)", path
        ):
            return self._download(KINDS.get(found[1] or "", "model"), found[2], found[3], found[4])
        raise _Refused(404, f"No such endpoint: {method} {path}")

    def _create(self) -> None:
        asked = json.loads(self.body)
        owner = asked.get("organization") or (self.user[0] if self.user else "")
        self._may_write(owner)
        kind, name = asked.get("type") or "model", f"{owner}/{asked['name'].split('/')[-1]}"
        url = f"{self.hub.url}/{'' if kind == 'model' else kind + 's/'}{name}"
        if (kind, name) in self.hub.repos:
            return self._answer(409, {"error": "You already created this repo", "url": url})
        private = asked.get("private") or asked.get("visibility") == "private"
        repo = self.hub.repos[kind, name] = Repo(kind, name, bool(private), asked.get("sdk"))
        repo.add("main", {".gitattributes": File(b"*.safetensors filter=lfs\n", False)}, "initial commit", None)
        self._answer(200, {"url": url, "name": name})
        return None

    def _delete(self) -> None:
        asked = json.loads(self.body)
        owner = asked.get("organization") or (self.user[0] if self.user else "")
        self._may_write(owner)
        kind, name = asked.get("type") or "model", f"{owner}/{asked['name'].split('/')[-1]}"
        self._repo(kind, name)
        del self.hub.repos[kind, name]
        self._answer(200, {})

    def _api(self, kind: str, name: str, rest: str) -> None:
        repo = self._repo(kind, name)
        what, _, revision = rest.partition("/")
        revision = urllib.parse.unquote(revision)
        if what in ("", "revision"):
            return self._info(repo, self._commit(repo, revision or "main"))
        if what == "preupload":
            return self._preupload(repo, revision)
        if what == "commit":
            return self._take(repo, revision)
        if what == "tree":
            commit = self._commit(repo, revision.split("/")[0] if not revision.startswith("refs/") else revision)
            return self._answer(200, [self._entry(path, file) for path, file in commit.files.items()])
        if what == "paths-info":
            asked = self._form().get("paths", [])
            files = self._commit(repo, revision).files
            return self._answer(200, [self._entry(path, files[path]) for path in asked if path in files])
        if what == "branch":
            self._may_write(name.split("/")[0])
            if self.command == "DELETE":
                repo.refs.pop(revision)
            elif revision in repo.refs:
                return self._answer(409, {"error": "Reference already exists"})
            else:
                start = json.loads(self.body or b"{}").get("startingPoint") or "main"
                repo.refs[revision] = self._commit(repo, start).oid
            return self._answer(200, {})
        if what == "tag":
            self._may_write(name.split("/")[0])
            repo.tags[json.loads(self.body)["tag"]] = self._commit(repo, revision).oid
            return self._answer(200, {})
        if what == "refs":
            branches = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": oid} for n, oid in repo.refs.items()]
            tags = [{"name": n, "ref": f"refs/tags/{n}", "targetCommit": oid} for n, oid in repo.tags.items()]
            return self._answer(200, {"branches": branches, "tags": tags, "converts": [], "pullRequests": []})
        if what == "commits":
            commit, found = self._commit(repo, revision), []
            while commit is not None:
                found.append({"id": commit.oid, "title": commit.title, "message": "", "authors": [],
                              "date": "2026-01-01T00:00:00.000Z"})  # fmt: skip
                commit = repo.commits[commit.parent] if commit.parent else None
            return self._answer(200, found)
        if what == "settings" and self.command == "PUT":
            self._may_write(name.split("/")[0])
            asked = json.loads(self.body)
            repo.private = bool(asked.get("private", asked.get("visibility") == "private"))
            return self._answer(200, {"private": repo.private})
        raise _Refused(404, f"No such endpoint: {what}")

    def _form(self) -> dict[str, list[str]]:
        if "json" in (self.headers.get("Content-Type") or ""):
            return json.loads(self.body)
        return urllib.parse.parse_qs(self.body.decode())

    def _commit(self, repo: Repo, revision: str) -> Commit:
        oid = repo.resolve(revision)
        if oid is None:
            raise _Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return repo.commits[oid]

    def _info(self, repo: Repo, commit: Commit) -> None:
        siblings = [{"rfilename": path} for path in commit.files]
        self._answer(200, {
            "_id": repo.name, "id": repo.name, "modelId": repo.name, "author": repo.name.split("/")[0], "sha": commit.oid,
            "private": repo.private, "siblings": siblings, "tags": [], "sdk": repo.sdk, "downloads": 0, "likes": 0,
        })  # fmt: skip

    def _entry(self, path: str, file: File) -> dict:
        entry = {"type": "file", "path": path, "size": len(file.data), "oid": file.oid}
        return entry | ({"lfs": {"oid": file.oid, "size": len(file.data), "pointerSize": 130}} if file.lfs else {})

    def _preupload(self, repo: Repo, revision: str) -> None:
        if "create_pr" not in self.query:
            self._may_write(repo.name.split("/")[0])
        files = self._commit(repo, revision).files
        answers = []
        for asked in json.loads(self.body)["files"]:
            path = asked["path"]
            mode = "lfs" if path.endswith(LFS_SUFFIXES) else "regular"
            answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False,
                            "oid": files[path].oid if path in files else None})  # fmt: skip
        self._answer(200, {"files": answers})

    def _take(self, repo: Repo, revision: str) -> None:
        wants_pr = self.query.get("create_pr", ["0"])[0] == "1"
        if self.user is None or not self.user[1]:
            raise _Refused(403, "This token may not write")
        if not wants_pr:
            self._may_write(repo.name.split("/")[0])
        parent = self._commit(repo, revision)
        files, title = dict(parent.files), ""
        for line in filter(None, self.body.decode().split("\n")):
            item = json.loads(line)
            key, value = item["key"], item["value"]
            if key == "header":
                title = value["summary"]
                if value.get("parentCommit") not in (None, parent.oid):
                    raise _Refused(412, "A commit has happened since. Please refresh and try again.")
            elif key == "file":
                files[value["path"]] = File(base64.b64decode(value["content"]), False)
            elif key == "lfsFile":
                if value["oid"] not in self.hub.lfs:
                    raise _Refused(400, f"LFS object {value['oid']} was never uploaded")
                files[value["path"]] = File(self.hub.lfs[value["oid"]], True)
            elif key == "deletedFile":
                files.pop(value["path"])
            elif key == "deletedFolder":
                files = {path: file for path, file in files.items() if not path.startswith(value["path"])}
        ref, number = revision, None
        if wants_pr:
            repo.pull_requests += 1
            number = repo.pull_requests
            ref = f"refs/pr/{number}"
        oid = repo.add(ref, files, title, parent.oid)
        base = f"{self.hub.url}/{'' if repo.kind == 'model' else repo.kind + 's/'}{repo.name}"
        answer = {"success": True, "commitOid": oid, "commitUrl": f"{base}/commit/{oid}", "hookOutput": ""}
        self._answer(200, answer | ({"pullRequestUrl": f"{base}/discussions/{number}"} if wants_pr else {}))

    def _lfs_batch(self, name: str) -> None:
        if self.user is None or not self.user[1]:
            raise _Refused(403, "This token may not write")
        objects = []
        for asked in json.loads(self.body)["objects"]:
            known = asked["oid"] in self.hub.lfs
            actions = {} if known else {
                "upload": {"href": f"{self.hub.url}/lfs/{asked['oid']}"},
                "verify": {"href": f"{self.hub.url}/lfs/verify"},
            }  # fmt: skip
            objects.append({**asked, "authenticated": True} | ({"actions": actions} if actions else {}))
        self._answer(200, {"transfer": "basic", "objects": objects})

    def _lfs_object(self, oid: str) -> None:
        if oid == "verify":
            known = json.loads(self.body)["oid"] in self.hub.lfs
            return self._answer(200 if known else 404, {})
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise _Refused(422, "The content does not match its hash")
        self.hub.lfs[oid] = self.body
        self._answer(200, {})
        return None

    def _download(self, kind: str, name: str, revision: str, path: str) -> None:
        commit = self._commit(self._repo(kind, name), revision)
        file = commit.files.get(path)
        headers = {"X-Repo-Commit": commit.oid}
        if file is None:
            message = {"error": "Entry not found"}
            return self._answer(
                404, message, headers | {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}
            )
        headers |= {"ETag": f'"{file.oid}"', "Content-Type": "application/octet-stream", "Accept-Ranges": "bytes"}
        if file.lfs:
            headers |= {"X-Linked-ETag": f'"{file.oid}"', "X-Linked-Size": str(len(file.data))}
        start = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if start and int(start[1]) < len(file.data):
            part = file.data[int(start[1]) :]
            span = f"bytes {start[1]}-{len(file.data) - 1}/{len(file.data)}"
            return self._answer(206, part, headers | {"Content-Range": span})
        self._answer(200, file.data, headers)
        return None


@functools.cache
def _listening() -> ThreadingHTTPServer:
    """One server for all tests of this process: clients read its address when they import huggingface_hub."""

    class Handler(_Handler):
        hub = Hub()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def address() -> str:
    """Where the Hub of these tests answers."""
    return f"http://127.0.0.1:{_listening().server_address[1]}"
