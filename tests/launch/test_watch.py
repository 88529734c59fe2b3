"""Silent ranks and silent servers are named with the limit; live ones are left alone."""

import os
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from launch.execution import watch
from launch.execution.watch import Watch
from recipes.resource_schema import ResourceSpec


@pytest.fixture
def clock(monkeypatch):
    """A clock that tests move; both clocks of the module read it."""
    now = [time.time()]
    monkeypatch.setattr(watch.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(watch.time, "time", lambda: now[0])
    return now


def beat(directory, rank, at):
    path = directory / f"{rank}.pid"
    path.write_text("host 1")
    os.utime(path, (at, at))


def test_ranks_are_silent_only_when_all_are(clock, tmp_path):
    watched = Watch(ResourceSpec(silence_minutes=10), tmp_path)
    beat(tmp_path, 0, clock[0])
    beat(tmp_path, 1, clock[0] - 30)
    clock[0] += 599
    assert watched.reason_to_end() is None
    clock[0] += 11
    said = watched.reason_to_end()
    assert "no rank has sent a heartbeat for 10 minutes, rank 1 not for 11" in said
    beat(tmp_path, 0, clock[0])
    clock[0] += 11
    assert watched.reason_to_end() is None


def test_no_rank_yet_is_no_silence(clock, tmp_path):
    watched = Watch(ResourceSpec(silence_minutes=0.1), tmp_path)
    clock[0] += 3600
    assert watched.reason_to_end() is None


class Healthy(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()

    def log_message(self, *arguments):
        pass


def test_a_server_that_stops_answering_is_named_after_a_minute(clock, tmp_path):
    server = HTTPServer(("127.0.0.1", 0), Healthy)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    watched = Watch(ResourceSpec(vllm={"mode": "server", "server_url": url}), tmp_path)
    for _ in range(10):
        clock[0] += 15
        assert watched.reason_to_end() is None
    server.shutdown()
    server.server_close()
    clock[0] += 50
    assert watched.reason_to_end() is None
    clock[0] += 15
    assert f"the vLLM server at {url} has not answered for 65 s" in watched.reason_to_end()


def test_it_looks_every_ten_seconds(clock, tmp_path):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}"
    watched = Watch(ResourceSpec(vllm={"mode": "server", "server_url": url}), tmp_path)
    clock[0] += 61
    assert watched.reason_to_end()
    clock[0] += 9
    assert watched.reason_to_end() is None
