"""Real HTTP servers on the loopback that speak the protocols of the hub and of a chat completion endpoint."""

import hashlib
import json
import socket
import threading
import time
import urllib.parse
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def reply(self, status, body=b"", **headers):
        self.send_response(status)
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def reply_json(self, value, status=200, **headers):
        self.reply(status, json.dumps(value).encode(), **headers)


@contextmanager
def serving(handler):
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def hub(repositories):
    """A hub with `repositories`: {"datasets/owner/name" or "models/owner/name": {"sha", "files", "gated"}}.

    `revisions` of a repository, {name: {"sha", "files"}}, are what it has besides `main`.
    """

    class Hub(_Handler):
        def do_GET(self):
            parts = urllib.parse.urlsplit(self.path)
            path, query = urllib.parse.unquote(parts.path), urllib.parse.parse_qs(parts.query)
            for name, repository in repositories.items():
                folder = name.removeprefix("models/")
                if path.startswith(f"/api/{name}") or path.startswith(f"/{folder}/resolve/"):
                    return self.repository(path, query, name, folder, repository)
            return self.reply_json({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")

        do_HEAD = do_GET

        def repository(self, path, query, name, folder, repository):
            base = f"/api/{name}"
            for revision, other in repository.get("revisions", {}).items():
                if other["sha"] in path or path == f"{base}/revision/{revision}":
                    repository = {"gated": repository.get("gated", False)} | other
                    path = path.replace(f"/revision/{revision}", "/revision/main")
                    break
            sha, files = repository["sha"], repository["files"]
            if path in (base, f"{base}/revision/main", f"{base}/revision/{sha}"):
                siblings = [
                    {"rfilename": file, "size": len(body), "blobId": "b" * 40}
                    | ({"lfs": self.lfs(body, "sha256")} if file.endswith((".parquet", ".safetensors")) else {})
                    for file, body in files.items()
                ]
                gated = repository.get("gated", False)
                return self.reply_json({"id": name.partition("/")[2], "sha": sha, "siblings": siblings, "gated": gated})
            if path == f"{base}/tree/{sha}":
                return self.reply_json(
                    [
                        {"type": "file", "path": file, "size": len(body), "oid": self.git_hash(body)}
                        | ({"lfs": self.lfs(body, "oid")} if file.endswith((".parquet", ".safetensors")) else {})
                        for file, body in files.items()
                    ]
                )
            file = path.removeprefix(f"/{folder}/resolve/{sha}/")
            if file in files:
                if repository.get("gated"):
                    return self.reply_json({"error": "gated"}, 403, X_Error_Code="GatedRepo")
                return self.reply(200, files[file], ETag=f'"{self.git_hash(files[file])}"', X_Repo_Commit=sha)
            return self.reply_json({"error": "Invalid rev id"}, 404, X_Error_Code="RevisionNotFound")

        @staticmethod
        def git_hash(body):
            return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()

        @staticmethod
        def lfs(body, key):
            return {key: hashlib.sha256(body).hexdigest(), "size": len(body), "pointerSize": 128}

    with serving(Hub) as address:
        yield address


@contextmanager
def pages(answers, key="key"):
    """A server that answers GET from `answers`, path -> bytes, to who sends the key."""

    class Pages(_Handler):
        def do_GET(self):
            if self.headers.get("Authorization") != f"Bearer {key}":
                return self.reply_json({}, 401)
            if self.path not in answers:
                return self.reply_json({}, 404)
            return self.reply(200, answers[self.path])

    with serving(Pages) as address:
        yield address


@contextmanager
def completions(bodies, answer, failures=0):
    """A completions server: `answer(prompt, seed)` -> text. Fails the first requests; `bodies` collects the rest."""
    left = [failures]
    lock = threading.Lock()

    class Completions(_Handler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                if left[0]:
                    left[0] -= 1
                    return self.reply_json({"error": "busy"}, 503)
                bodies.append(body)
            prompts = body["prompt"] if isinstance(body["prompt"], list) else [body["prompt"]]
            choices = [{"index": n, "text": answer(prompt, body["seed"])} for n, prompt in enumerate(prompts)]
            return self.reply_json({"choices": choices}, Content_Type="application/json")

    with serving(Completions) as address:
        yield f"{address}/v1/completions"


class TeacherState:
    """What a fake teacher was asked, and the faults it still has to commit, one per request."""

    def __init__(self, answers, faults=(), delay_seconds=0.0):
        self.answers = answers  # (problem text, seed, index) -> completion
        self.faults = list(faults)
        self.delay_seconds = delay_seconds
        self.bodies = []
        self.answered = Counter()
        self.headers = []
        self.lock = threading.Lock()


@contextmanager
def teacher(state):
    """An OpenAI-compatible endpoint that answers from `state`; yields its base_url."""

    class Teacher(_Handler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with state.lock:
                state.bodies.append(body)
                state.headers.append(dict(self.headers))
                fault = state.faults.pop(0) if state.faults else None
            if fault == "rate limit":
                return self.reply_json({"error": "slow down"}, 429, Retry_After="0.1")
            if isinstance(fault, int):
                return self.reply_json({"error": f"status {fault} for {body['model']}"}, fault)
            if fault == "hang":
                time.sleep(5)
                return self.reply_json({})
            if fault == "reset":
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                self.close_connection = True
                return self.connection.close()
            if fault == "garbage":
                return self.reply(200, b"<html>proxy error</html>")
            time.sleep(state.delay_seconds)
            problem = body["messages"][-1]["content"]
            choices = [
                {
                    "index": index,
                    "finish_reason": "length" if "CUT" in text else "stop",
                    "message": {"role": "assistant", "content": text},
                }
                for index in range(body["n"])
                for text in [state.answers(problem, body["seed"], index)]
            ]
            if fault == "one choice too few":
                choices = choices[1:]
            else:
                with state.lock:
                    state.answered[problem] += body["n"]
            tokens = sum(len(choice["message"]["content"].split()) for choice in choices)
            return self.reply_json({"choices": choices, "usage": {"completion_tokens": tokens, "prompt_tokens": 7}})

    with serving(Teacher) as address:
        yield f"{address}/v1"
