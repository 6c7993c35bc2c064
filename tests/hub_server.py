# Copyright 2026 The Latent Attention Authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""
A small Hub on loopback: what huggingface_hub and transformers ask of the real one to create a repository, commit to
it and load from it, over real HTTP. Repositories live in memory, and a test looks at them directly.

    with HubServer() as hub:
        hub.url                                  # for HF_ENDPOINT
        hub.fail("POST .*/commit/", 500, times=2)  # the next two commits get a 500
        hub.repos["me/model"].files()            # {path: bytes} at the head of main
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit


WRITE_TOKEN = "hf_write0123456789abcdefghijklmnopqrst"
READ_TOKEN = "hf_read0123456789abcdefghijklmnopqrstu"
# Answers that are no status. The connection is dropped when half of the request's body is read, or when what it asks
# for is done.
CUT, LOST = "cut", "lost"


@dataclass
class Blob:
    """A file: its content, and whether it came through LFS."""

    content: bytes
    is_lfs: bool = False

    @property
    def oid(self) -> str:
        """The hash as the client computes it: git's own of a regular file, the plain SHA-256 of an LFS file."""
        if self.is_lfs:
            return hashlib.sha256(self.content).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()


@dataclass
class Repo:
    """Branches point to commits; a commit is the whole tree, `{path: Blob}`."""

    private: bool
    gated: bool = False
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, Blob]] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    pull_requests: list[str] = field(default_factory=list)

    def commit(self, branch: str, tree: dict[str, Blob], message: str) -> str:
        """Make `tree` the head of `branch`; return the commit's hash."""
        listing = sorted((path, blob.oid) for path, blob in tree.items())
        oid = hashlib.sha1(json.dumps([branch, message, len(self.messages), listing]).encode()).hexdigest()
        self.commits[oid], self.branches[branch] = tree, oid
        self.messages.append(message)
        return oid

    def resolve(self, revision: str) -> str | None:
        """Return the commit that a branch's name or a commit's hash stands for, or None."""
        oid = self.branches.get(revision, revision)
        return oid if oid in self.commits else None

    def files(self, revision: str = "main") -> dict[str, bytes]:
        """Return what a clone would hold."""
        return {path: blob.content for path, blob in self.commits[self.resolve(revision)].items()}


@dataclass
class Failure:
    """What is to go wrong with the next `times` requests that match `pattern`."""

    pattern: re.Pattern
    answer: int | str | Callable[[], None]  # a status, `CUT` or `LOST`; a function is called before the real answer
    times: int


class HubServer(ThreadingHTTPServer):
    """The server and its state. `requests` lists what was asked, `"METHOD /path"` each."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.lock = threading.RLock()
        self.clear()

    def clear(self):
        """Forget everything, for the next test."""
        self.repos, self.lfs, self.requests, self.failures = {}, {}, [], []

    def create(self, repo_id: str, private: bool = True) -> Repo:
        """Make an empty repository, with the system commit that the real Hub starts with."""
        repo = self.repos[repo_id] = Repo(private)
        repo.commit(
            "main", {".gitattributes": Blob(b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n")}, "initial"
        )
        return repo

    def fail(self, pattern: str, answer: int | str | Callable[[], None], times: int = 1):
        """Let a `Failure` happen. `pattern` is matched with "METHOD /path"."""
        self.failures.append(Failure(re.compile(pattern), answer, times))

    def __enter__(self):
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *exception):
        self.shutdown()
        self.server_close()

    def handle_error(self, request, client_address):
        """Print no traceback: clients that go away or are cut off are part of the tests."""


ROUTES = []


def route(pattern: str):
    """Register a handler method for "METHOD /path"; `{repo}` and `{rev}` in the pattern become groups."""
    pattern = pattern.replace("{repo}", r"(?P<repo_id>[^/]+/[^/]+?)").replace("{rev}", r"(?P<revision>[^/]+)")

    def register(method):
        ROUTES.append((re.compile(pattern), method))
        return method

    return register


class HubError(Exception):
    """An error that is answered as the Hub does: a status, a message, and the `X-Error-Code` that the client reads."""

    def __init__(self, status: int, message: str, code: str | None = None):
        super().__init__(message)
        self.status, self.code = status, code


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    protocol_version = "HTTP/1.1"
    answer_is_lost = False

    def log_message(self, *arguments):
        """Print nothing: the tests read `requests`."""

    def answer(self):
        """Find the route, and turn errors into answers."""
        url = urlsplit(self.path)
        request = f"{self.command} {url.path}"
        self.query = {key: values[0] for key, values in parse_qs(url.query).items()}
        try:
            self.inject_failure(request)
            self.body = self.read_body()
            with self.server.lock:
                self.server.requests.append(request)
                self.check_token()
                self.dispatch(request)
        except HubError as error:
            headers = {"X-Error-Message": str(error), **({"X-Error-Code": error.code} if error.code else {})}
            self.send(error.status, {"error": str(error)}, headers)

    do_GET = do_HEAD = do_POST = do_PUT = answer

    def dispatch(self, request: str):
        for pattern, method in ROUTES:
            if match := pattern.fullmatch(request):
                groups = {name: unquote(value or "") for name, value in match.groupdict().items()}
                return method(self, **groups)
        raise HubError(404, f"no such endpoint: {request}")

    def inject_failure(self, request: str):
        for failure in self.server.failures:
            if failure.times > 0 and failure.pattern.match(request):
                failure.times -= 1
                if callable(failure.answer):
                    failure.answer()
                elif failure.answer == CUT:
                    self.rfile.read(int(self.headers["Content-Length"]) // 2)
                    raise ConnectionAbortedError
                elif failure.answer == LOST:
                    self.answer_is_lost = True
                else:
                    self.read_body()
                    # It quotes the token, so that every test of a failure also shows that the command does not.
                    raise HubError(failure.answer, f"injected for {self.token}")

    def read_body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def send(self, status: int, content, headers: dict | None = None):
        if self.answer_is_lost:
            raise ConnectionAbortedError
        payload = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(payload)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(payload)

    # Who may do what

    @property
    def token(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def check_token(self):
        if self.token not in ("", READ_TOKEN, WRITE_TOKEN):
            raise HubError(401, "Invalid credentials in Authorization header")

    def readable(self, repo_id: str) -> Repo:
        repo = self.server.repos.get(repo_id)
        if repo is None or (repo.private and not self.token):
            raise HubError(404 if self.token else 401, "Repository not found", "RepoNotFound")
        return repo

    def writable(self, repo_id: str) -> Repo:
        repo = self.readable(repo_id)
        if self.token != WRITE_TOKEN:
            raise HubError(403, "you need a token with write access")
        if repo.gated:
            raise HubError(403, f"Access to model {repo_id} is restricted", "GatedRepo")
        return repo

    def tree(self, repo: Repo, revision: str) -> tuple[str, dict[str, Blob]]:
        oid = repo.resolve(revision)
        if oid is None:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return oid, repo.commits[oid]

    # Writing

    @route("POST /api/repos/create")
    def create_repo(self):
        request = json.loads(self.body)
        repo_id = f"{request.get('organization') or 'me'}/{request['name']}"
        url = f"{self.server.url}/{repo_id}"
        if self.token != WRITE_TOKEN:
            raise HubError(403, "you need a token with write access")
        if repo_id in self.server.repos:
            return self.send(409, {"error": "You already created this model repo", "url": url})
        self.server.create(repo_id, request.get("visibility") == "private" or bool(request.get("private")))
        self.send(200, {"url": url, "name": repo_id})

    @route("POST /api/validate-yaml")
    def validate_yaml(self):
        if json.loads(self.body)["content"].startswith("---\n"):
            return self.send(200, {"errors": [], "warnings": []})
        self.send(400, {"errors": [{"message": "no metadata"}], "warnings": []})

    @route("POST /api/models/{repo}/preupload/{rev}")
    def preupload(self, repo_id: str, revision: str):
        _, tree = self.tree(self.writable(repo_id), revision)
        self.send(200, {"files": [self.upload_mode(file, tree) for file in json.loads(self.body)["files"]]})

    def upload_mode(self, file: dict, tree: dict[str, Blob]) -> dict:
        mode = "lfs" if file["path"].endswith(".safetensors") else "regular"
        known = {"oid": tree[file["path"]].oid} if file["path"] in tree else {}
        return {"path": file["path"], "uploadMode": mode, "shouldIgnore": False, **known}

    @route("POST /{repo}.git/info/lfs/objects/batch")
    def lfs_batch(self, repo_id: str):
        self.writable(repo_id)
        objects = [{"oid": wanted["oid"], "size": wanted["size"]} for wanted in json.loads(self.body)["objects"]]
        for wanted in objects:
            if wanted["oid"] not in self.server.lfs:
                href = f"{self.server.url}/lfs/{wanted['oid']}"
                wanted["actions"] = {"upload": {"href": href}, "verify": {"href": f"{href}/verify"}}
        self.send(200, {"transfer": "basic", "objects": objects})

    @route("PUT /lfs/(?P<oid>[0-9a-f]{64})")
    def lfs_put(self, oid: str):
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise HubError(400, "content does not match its hash")
        self.server.lfs[oid] = self.body
        self.send(200, b"")

    @route("POST /lfs/(?P<oid>[0-9a-f]{64})/verify")
    def lfs_verify(self, oid: str):
        if len(self.server.lfs.get(oid, b"")) != json.loads(self.body)["size"]:
            raise HubError(404, "object was not uploaded")
        self.send(200, {})

    @route("POST /api/models/{repo}/commit/{rev}")
    def commit(self, repo_id: str, revision: str):
        repo = self.writable(repo_id)
        head, tree = self.tree(repo, revision)
        lines = [json.loads(line) for line in self.body.splitlines()]
        header = lines[0]["value"]
        is_pull_request = self.query.get("create_pr") == "1"
        if not is_pull_request and header.get("parentCommit", head) != head:
            raise HubError(412, "A commit has happened since. Please refresh and try again.")
        tree = dict(tree)
        for line in lines[1:]:
            self.apply(tree, line["key"], line["value"])
        branch = f"refs/pr/{len(repo.pull_requests) + 1}" if is_pull_request else revision
        if is_pull_request:
            repo.pull_requests.append(header["summary"])
        oid = repo.commit(branch, tree, header["summary"])
        url = f"{self.server.url}/{repo_id}"
        pull_request = f"{url}/discussions/{len(repo.pull_requests)}" if is_pull_request else None
        self.send(200, {"commitUrl": f"{url}/commit/{oid}", "commitOid": oid, "pullRequestUrl": pull_request})

    def apply(self, tree: dict[str, Blob], operation: str, value: dict):
        if operation == "file":
            tree[value["path"]] = Blob(base64.b64decode(value["content"]))
        elif operation == "lfsFile":
            tree[value["path"]] = Blob(self.server.lfs[value["oid"]], is_lfs=True)
        elif tree.pop(value["path"], None) is None:
            raise HubError(404, "A file with this name doesn't exist", "EntryNotFound")

    # Reading

    @route("GET /api/models/{repo}(?:/revision/{rev})?")
    def info(self, repo_id: str, revision: str):
        repo = self.readable(repo_id)
        oid, tree = self.tree(repo, revision or "main")
        files = [{"rfilename": path} for path in tree]
        self.send(200, {"id": repo_id, "sha": oid, "private": repo.private, "tags": [], "siblings": files})

    @route("GET /api/models/{repo}/tree/{rev}(?:/(?P<folder>.+))?")
    def list_tree(self, repo_id: str, revision: str, folder: str):
        _, tree = self.tree(self.readable(repo_id), revision)
        files = [(path, blob) for path, blob in tree.items() if path.startswith(f"{folder}/" if folder else "")]
        if folder and not files:
            raise HubError(404, f"{folder} does not exist", "EntryNotFound")
        self.send(200, [self.tree_entry(path, blob) for path, blob in files])

    def tree_entry(self, path: str, blob: Blob) -> dict:
        size = len(blob.content)
        lfs = {"lfs": {"oid": blob.oid, "size": size, "pointerSize": 134}} if blob.is_lfs else {}
        return {"type": "file", "path": path, "size": size, "oid": blob.oid, **lfs}

    @route("(?:GET|HEAD) /{repo}/resolve/{rev}/(?P<path>.+)")
    def resolve(self, repo_id: str, revision: str, path: str):
        oid, tree = self.tree(self.readable(repo_id), revision)
        if path not in tree:
            raise HubError(404, f"{path} does not exist", "EntryNotFound")
        self.send(200, tree[path].content, {"ETag": f'"{tree[path].oid}"', "X-Repo-Commit": oid})
