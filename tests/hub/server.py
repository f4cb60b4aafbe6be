"""A stand-in Hub on loopback: the endpoints that the real client calls, on repositories in memory."""

import base64
import hashlib
import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlparse

TOKEN = "hf_test"
LFS_SUFFIXES = (".safetensors", ".bin", ".png")


class Repo:
    def __init__(self, private: bool = False) -> None:
        self.private, self.gated = private, False
        self.commits: dict[str, dict[str, bytes]] = {}
        self.refs: dict[str, str] = {}
        self.commit({}, "main")

    def commit(self, files: dict[str, bytes], ref: str) -> str:
        digest = hashlib.sha1(f"{len(self.commits)}{ref}{sorted(files)}".encode()).hexdigest()
        self.commits[digest] = files
        self.refs[ref] = digest
        return digest

    def resolve(self, revision: str) -> str | None:
        revision = unquote(revision)
        return self.refs.get(revision) or (revision if revision in self.commits else None)


class FakeHub(ThreadingHTTPServer):
    """
    Serves `repos` ("models/user/name" -> Repo) and logs (method, path) in `requests`.

    Misbehaves on request: `cut` (path of a file -> bytes after which it hangs up), `delay` (seconds before an answer),
    `broken` (pattern of a path -> status), `wrong` (pattern -> what it answers instead), `uploads_left` (large files
    that it takes before it refuses). Names under "other/" belong to somebody else.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[str, Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.cut: dict[str, int] = {}
        self.delay = 0.0
        self.broken: dict[str, int] = {}
        self.wrong: dict[str, bytes] = {}
        self.uploads_left: int | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def __enter__(self) -> "FakeHub":
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeHub

    def log_message(self, *_) -> None:
        pass

    def answer(self, status: int, body: bytes | dict | list = b"", headers: dict[str, str] | None = None) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def missing(self, code: str, status: int = 404) -> None:
        self.answer(status, {"error": code}, {"X-Error-Code": code, "X-Error-Message": code})

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    @property
    def authorised(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def repo(self, kind: str, name: str) -> Repo | None:
        """The repository if this request may see it; otherwise the error has been sent."""
        found = self.server.repos.get(f"{kind}/{name}")
        if found is None or (found.private and not self.authorised):
            self.missing("RepoNotFound", 404 if self.authorised else 401)
            return None
        if found.gated and not self.authorised:
            self.missing("GatedRepo", 403)
            return None
        return found

    def route(self) -> None:
        self.server.requests.append((self.command, self.path))
        url = urlparse(self.path)
        path, query = unquote(url.path), parse_qs(url.query)
        time.sleep(self.server.delay)
        for pattern, content in self.server.wrong.items():
            if re.search(pattern, path) and self.command != "HEAD":
                self.body()
                return self.answer(200, content, {"X-Repo-Commit": "0" * 40, "ETag": '"0"'})
        for pattern, status in self.server.broken.items():
            if re.search(pattern, path):
                self.body()
                return self.answer(status, {"error": "broken on purpose"})
        for method, pattern, name in ROUTES:
            match = re.fullmatch(pattern, path)
            if match and self.command in method:
                return getattr(self, name)(query, **match.groupdict())
        self.body()
        return self.answer(404, {"error": "no such endpoint"})

    do_GET = do_HEAD = do_POST = do_PUT = route

    def create(self, query) -> None:
        wanted = json.loads(self.body())
        if not self.authorised:
            return self.answer(401, {"error": "Invalid username or password."})
        name = "/".join(filter(None, (wanted.get("organization"), wanted["name"])))
        if name.startswith("other/"):
            return self.answer(403, {"error": "You don't have the rights to create a model under this namespace."})
        key = f"{wanted.get('type', 'model')}s/{name if '/' in name else 'tester/' + name}"
        exists = key in self.server.repos
        if not exists:
            self.server.repos[key] = Repo(bool(wanted.get("private")) or wanted.get("visibility") == "private")
        repo_id = key.split("/", 1)[1]
        return self.answer(409 if exists else 200, {"url": f"{self.server.url}/{repo_id}", "id": repo_id})

    def validate(self, query) -> None:
        self.body()
        self.answer(200, {"errors": [], "warnings": []})

    def whoami(self, query) -> None:
        self.answer(200 if self.authorised else 401, {"name": "tester", "type": "user", "auth": {}, "orgs": []})

    def preupload(self, query, kind, name, revision) -> None:
        files = json.loads(self.body())["files"]
        if self.repo(kind, name):
            modes = {f["path"]: "lfs" if f["path"].endswith(LFS_SUFFIXES) else "regular" for f in files}
            answer = [{"path": p, "uploadMode": mode, "shouldIgnore": False} for p, mode in modes.items()]
            self.answer(200, {"files": answer})

    def lfs(self, query, name) -> None:
        objects = json.loads(self.body())["objects"]
        for item in objects:
            if item["oid"] not in self.server.blobs:
                item["actions"] = {"upload": {"href": f"{self.server.url}/_lfs/{item['oid']}"}}
        self.answer(200, {"transfer": "basic", "objects": objects})

    def put(self, query, oid) -> None:
        content = self.body()
        if self.server.uploads_left is not None:
            if self.server.uploads_left == 0:
                return self.answer(400, {"error": "no more today"})
            self.server.uploads_left -= 1
        good = hashlib.sha256(content).hexdigest() == oid
        if good:
            self.server.blobs[oid] = content
        self.answer(200 if good else 400)

    def commit(self, query, kind, name, revision) -> None:
        lines = [json.loads(line) for line in self.body().splitlines() if line.strip()]
        repo = self.repo(kind, name)
        if repo is None:
            return None
        if not self.authorised:
            return self.answer(403, {"error": "You have no write access."})
        base = repo.resolve(revision)
        if base is None:
            return self.missing("RevisionNotFound")
        files = dict(repo.commits[base])
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.blobs[value["oid"]]
            elif line["key"] == "deletedFile":
                files.pop(value["path"], None)
        request = query.get("create_pr") == ["1"]
        ref = f"refs/pr/{len(repo.refs)}" if request else unquote(revision)
        sha = repo.commit(files, ref)
        number = {"pullRequestUrl": f"{self.server.url}/{name}/discussions/{len(repo.refs) - 1}"} if request else {}
        return self.answer(200, {"commitUrl": f"{self.server.url}/{name}/commit/{sha}", "commitOid": sha, **number})

    def branch(self, query, kind, name, revision) -> None:
        self.body()
        repo = self.repo(kind, name)
        if repo is None:
            return None
        exists = revision in repo.refs
        if not exists:
            repo.refs[revision] = repo.refs["main"]
        return self.answer(409 if exists else 200, {})

    def info(self, query, kind, name, revision="main") -> None:
        repo = self.repo(kind, name)
        if repo is None:
            return None
        sha = repo.resolve(revision)
        if sha is None:
            return self.missing("RevisionNotFound")
        siblings = [{"rfilename": path} for path in repo.commits[sha]]
        return self.answer(
            200, {"id": name, "modelId": name, "sha": sha, "private": repo.private, "siblings": siblings}
        )

    def tree(self, query, kind, name, revision, folder="") -> None:
        repo = self.repo(kind, name)
        if repo is None:
            return None
        sha = repo.resolve(revision)
        if sha is None:
            return self.missing("RevisionNotFound")
        files = [tree_entry(path, content) for path, content in repo.commits[sha].items()]
        return self.answer(200, files)

    def file(self, query, name, revision, path, kind="models") -> None:
        repo = self.repo(kind, name)
        if repo is None:
            return None
        sha = repo.resolve(revision)
        if sha is None:
            return self.missing("RevisionNotFound")
        content = repo.commits[sha].get(path)
        if content is None:
            return self.missing("EntryNotFound")
        return self.send_file(path, content, sha)

    def send_file(self, path: str, content: bytes, sha: str) -> None:
        entry = tree_entry(path, content)
        lfs = entry.get("lfs")
        headers = {"X-Repo-Commit": sha, "ETag": f'"{lfs["oid"] if lfs else entry["oid"]}"', "Accept-Ranges": "bytes"}
        if lfs:
            headers |= {"X-Linked-Etag": f'"{lfs["oid"]}"', "X-Linked-Size": str(len(content))}
        start = int(self.headers["Range"].split("=")[1].split("-")[0]) if "Range" in self.headers else 0
        limit = self.server.cut.get(path)
        if self.command == "HEAD" or limit is None:
            return self.answer(206 if start else 200, content[start:], headers)
        self.send_response(200)  # promises everything, sends a part, hangs up
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content[:limit])
        self.wfile.flush()
        self.close_connection = True
        return self.connection.close()


def tree_entry(path: str, content: bytes) -> dict:
    oid = hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
    entry = {"type": "file", "path": path, "size": len(content), "oid": oid}
    if path.endswith(LFS_SUFFIXES):
        entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 100}
    return entry


KIND, NAME, REVISION = r"(?P<kind>models|datasets|spaces)", r"(?P<name>[^/]+/[^/]+)", r"(?P<revision>refs/pr/\d+|[^/]+)"
ROUTES = [
    ("POST", "/api/repos/create", "create"),
    ("POST", "/api/validate-yaml", "validate"),
    ("GET", "/api/whoami-v2", "whoami"),
    ("POST", rf"/api/{KIND}/{NAME}/preupload/{REVISION}", "preupload"),
    ("POST", rf"/(?:spaces/|datasets/)?{NAME}\.git/info/lfs/objects/batch", "lfs"),
    ("PUT", r"/_lfs/(?P<oid>\w+)", "put"),
    ("POST", rf"/api/{KIND}/{NAME}/commit/{REVISION}", "commit"),
    ("POST", rf"/api/{KIND}/{NAME}/branch/{REVISION}", "branch"),
    ("GET", rf"/api/{KIND}/{NAME}", "info"),
    ("GET", rf"/api/{KIND}/{NAME}/revision/{REVISION}", "info"),
    ("GET", rf"/api/{KIND}/{NAME}/tree/{REVISION}(?:/(?P<folder>.*))?", "tree"),
    (("GET", "HEAD"), rf"/(?P<kind>spaces|datasets)/{NAME}/resolve/{REVISION}/(?P<path>.+)", "file"),
    (("GET", "HEAD"), rf"/{NAME}/resolve/{REVISION}/(?P<path>.+)", "file"),
]
