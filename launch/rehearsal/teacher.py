"""A stand-in for the teacher's server: it serves the same protocol and writes the reference answer of each problem."""

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from data.prompts.thinking import THINK_CLOSE, THINK_OPEN


def completion(answer: str, thinking: bool) -> str:
    """A correct demonstration, as short as possible."""
    thought = f"{THINK_OPEN}\nAdd.\n{THINK_CLOSE}\n\n" if thinking else ""
    return f"{thought}It is \\boxed{{{answer}}}."


@contextmanager
def serving_teacher(answers: Mapping[str, str], faults: bool = False, host: str = "127.0.0.1") -> Iterator[str]:
    """Serve chat completions for the problems of `answers` (text -> reference answer); yields the base URL.

    Every fourth sample is wrong. With `faults`, the first request fails with status 503 and the first sample is
    truncated.
    """
    state = {"requests": 0}
    lock = threading.Lock()
    by_length = sorted(answers, key=len, reverse=True)

    class Teacher(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments: Any) -> None:
            """Log nothing; errors are in the log of the stage, the client."""

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                request = state["requests"]
                state["requests"] += 1
            if faults and request == 0:
                return self._reply({"error": "overloaded"}, 503)
            prompt = body["messages"][-1]["content"]
            problem = next((text for text in by_length if text in prompt), None)
            if problem is None:
                return self._reply({"error": "the rehearsal's teacher does not know this problem"}, 400)
            thinking = bool(body.get("chat_template_kwargs", {}).get("enable_thinking"))
            choices = []
            for index in range(body["n"]):
                cut = faults and request == 1 and index == 0
                answer = answers[problem] if index % 4 != 3 else f"{answers[problem]}1"
                text = completion(answer, thinking)
                choices.append(
                    {
                        "index": index,
                        "finish_reason": "length" if cut else "stop",
                        "message": {"role": "assistant", "content": text[: len(text) // 2] if cut else text},
                    }
                )
            usage = {"completion_tokens": 12 * len(choices), "prompt_tokens": 40}
            return self._reply({"choices": choices, "usage": usage}, 200)

        def _reply(self, value: dict[str, Any], status: int) -> None:
            content = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    server = ThreadingHTTPServer((host, 0), Teacher)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://{host}:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
