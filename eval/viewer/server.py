"""The server of the browser of responses. It listens on the loopback alone and only reads.

A page of another site cannot read from it: a request under any other name than this machine's own (DNS rebinding) is
refused, and no answer allows another origin.
"""

import json
import sys
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from eval.viewer.cell import FilterError, NoQuestionError, filters_from
from eval.viewer.page import content_policy, render_page
from eval.viewer.study import StudyView
from recipes.errors import UserError

ADDRESS = "127.0.0.1"
_NAMES = (ADDRESS, "localhost")  # with any port: an SSH tunnel may end at another one
_PAGE_LIMIT = 500


class ViewServer(ThreadingHTTPServer):
    """Serves one study.

    Args:
        study: what is shown.
        port: 0: a free one.

    Raises:
        UserError: the port is taken.
    """

    daemon_threads = True

    def __init__(self, study: StudyView, port: int = 0) -> None:
        self.study = study
        try:
            super().__init__((ADDRESS, port), _Handler)
        except (OSError, OverflowError) as error:
            why = error.strerror if isinstance(error, OSError) else "ports are 0 to 65535"
            raise UserError(f"port {port} cannot be used: {why}; without --port a free one is taken") from None

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://{ADDRESS}:{self.server_address[1]}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing about a reader that went away."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: ViewServer
    server_version, sys_version = "transfer", ""

    def do_GET(self) -> None:
        """Answer one request."""
        if self.headers.get("Host", "").rpartition(":")[0] not in _NAMES and self.headers.get("Host") not in _NAMES:
            self._json(HTTPStatus.FORBIDDEN, {"error": f"this server answers to {' and '.join(_NAMES)} only"})
            return
        address = urlsplit(self.path)
        query = dict(parse_qsl(address.query))
        study = self.server.study
        try:
            if address.path == "/":
                page = render_page(study.index()).encode()
                self._send(HTTPStatus.OK, "text/html; charset=utf-8", page)
            elif address.path == "/api/index":
                self._json(HTTPStatus.OK, study.index())
            elif address.path == "/api/questions":
                self._json(HTTPStatus.OK, self._questions(query))
            elif address.path == "/api/question":
                self._json(HTTPStatus.OK, study.details(query.get("id", "")))
            else:
                there = "/, /api/index, /api/questions, /api/question"
                self._json(HTTPStatus.NOT_FOUND, {"error": f"{address.path} does not exist; there are {there}"})
        except NoQuestionError as error:
            self._json(HTTPStatus.NOT_FOUND, {"error": str(error)})
        except FilterError as error:
            self._json(HTTPStatus.BAD_REQUEST, {"error": str(error)})
        except UserError as error:  # a damaged file
            self._json(HTTPStatus.INTERNAL_SERVER_ERROR, {"error": str(error)})

    def _questions(self, query: dict[str, str]) -> dict[str, Any]:
        offset, limit = _number(query, "offset", 0), min(_number(query, "limit", 100), _PAGE_LIMIT)
        hits = self.server.study.find(filters_from(query))
        items = [self.server.study.summary(cell, position) for cell, position in hits[offset : offset + limit]]
        return {"total": len(hits), "offset": offset, "items": items}

    def _json(self, status: HTTPStatus, value: dict[str, Any]) -> None:
        # A text of a model may hold lone surrogates: UTF-8 has no bytes for them, but JSON escapes them.
        self._send(status, "application/json", json.dumps(value).encode())

    def _send(self, status: HTTPStatus, kind: str, content: bytes) -> None:
        self.send_response(status)
        for name, value in {
            "Content-Type": kind,
            "Content-Length": str(len(content)),
            "Content-Security-Policy": f"{content_policy()}; frame-ancestors 'none'",
            "Cross-Origin-Resource-Policy": "same-origin",
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-store",
        }.items():
            self.send_header(name, value)
        if status == HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", "GET")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Every other method, and what is no HTTP, gets JSON too."""
        if code == HTTPStatus.NOT_IMPLEMENTED:
            self._json(HTTPStatus.METHOD_NOT_ALLOWED, {"error": f"{self.command} is not allowed, only GET"})
        else:
            self._json(HTTPStatus(code), {"error": message or HTTPStatus(code).phrase})

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002 (http.server's name)
        """Do not print a line for each request."""


def _number(query: dict[str, str], name: str, default: int) -> int:
    text = query.get(name) or str(default)
    if not (text.isascii() and text.isdecimal()):
        raise FilterError(f"{name} is {text!r} but must be a whole number, 0 or more")
    return int(text)
