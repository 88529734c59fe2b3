"""What tests of `transfer view` share: stored files read without its package, and requests to its server."""

import contextlib
import http.client
import json
import shutil
import threading
from html.parser import HTMLParser
from urllib.parse import urlencode

import pyarrow.parquet as pq
import zstandard

from eval.viewer.server import ViewServer
from eval.viewer.study import StudyView

MODELS = ["base", *(f"{arm}-seed0-final" for arm in ("off_policy_sft", "on_policy_sft", "grpo"))]
BENCHMARKS = ("sum", "story", "sort", "logic", "copy", "fact")
GRPO = MODELS[-1]


def rows_of(study, model, benchmark):
    """Stored rows of a unit, read here."""
    (chunk,) = (study / "eval" / model / f"{benchmark}-native").glob("chunk-*.zst")
    return [json.loads(line) for line in zstandard.decompress(chunk.read_bytes()).split(b"\n") if line]


def table_of(study, model, benchmark, scoring="robust"):
    """question -> [(value, outcome, answer)], read here."""
    path = study / "eval" / model / f"{benchmark}-native" / f"scores-{scoring}.parquet"
    table = {}
    for row in sorted(pq.read_table(path).to_pylist(), key=lambda row: row["sample_index"]):
        table.setdefault(row["question_id"], []).append((row["value"], row["outcome"], row["answer"]))
    return table


@contextlib.contextmanager
def serving(study):
    """The port of a server of this study."""
    with ViewServer(StudyView(study)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def ask(port, path, method="GET", **headers):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer, content


def api(port, path, **query):
    answer, content = ask(port, f"/api/{path}?{urlencode(query)}")
    return answer.status, json.loads(content)


def copy_of(study, folder):
    for name in ("eval", "questions"):
        shutil.copytree(study / name, folder / name)
    shutil.copy(study / "study.json", folder)
    return folder


def expected(study, model, change="", outcome="", scoring="robust"):
    """Questions that pass, by the score tables alone."""
    found = []
    for benchmark in BENCHMARKS:
        base = table_of(study, "base", benchmark, scoring)
        for question, rows in table_of(study, model, benchmark, scoring).items():
            before, after = (sum(value for value, _, _ in one) for one in (base[question], rows))
            moved = "won" if after > before else "lost" if after < before else "same"
            if change in ("", moved) and (not outcome or outcome in [name for _, name, _ in rows]):
                found.append(f"{benchmark}/native/{question}")
    return sorted(found)


class Scripts(HTMLParser):
    """Elements of a page, and the texts of its scripts, as a browser splits them."""

    def __init__(self):
        super().__init__()
        self.tags, self.texts, self.policy = [""], [], ""

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if ("http-equiv", "Content-Security-Policy") in attributes:
            self.policy = dict(attributes)["content"]

    def handle_data(self, data):
        if self.tags[-1] == "script" and data.strip():
            self.texts.append(data)


def data_of(path):
    scripts = Scripts()
    scripts.feed(path.read_text())
    return json.loads(scripts.texts[0])
