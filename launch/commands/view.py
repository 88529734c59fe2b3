"""`transfer view`: a browser of all responses, on this machine only or as a page."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from launch.commands.arguments import STUDY, argument, command, study_folder
from recipes.errors import UserError

if TYPE_CHECKING:
    from eval.viewer.cell import Filters
    from eval.viewer.study import StudyView

_EXPORTED = 200


@command(
    "read the responses of all models side by side",
    STUDY,
    argument("--port", type=int, default=0, metavar="PORT", help="port on 127.0.0.1 (default: a free one)"),
    argument("--export", type=Path, metavar="FILE.html", help="write the questions into one page, start no server"),
    argument("--limit", type=int, default=_EXPORTED, metavar="N", help=f"most questions of --export ({_EXPORTED})"),
    argument("--benchmark", default="", metavar="NAME", help="only this benchmark"),
    argument("--prompting", default="", metavar="NAME", help="only this prompting"),
    argument("--scoring", default="", metavar="NAME", help="scoring of the filters (default: the report's reading)"),
    argument("--model", default="", metavar="MODEL", help="model that the next three filters go by (default: any)"),
    argument("--outcome", default="", metavar="NAME", help="correct, wrong, no_answer, ... (docs/report.md)"),
    argument("--change", default="", choices=("won", "lost", "same"), help="the score against the base's"),
    argument("--search", default="", metavar="TEXT", help="in the question, its reference and the responses"),
)
def view(options: argparse.Namespace) -> int:
    """Serve a page on 127.0.0.1 with every question, the responses of all models, their scores, and how each answer was
    read. Stop it with Ctrl-C. --export writes a page that opens without a server. The filters are those of the page.
    """
    from eval.viewer.cell import filters_from
    from eval.viewer.study import StudyView

    if options.limit < 1:
        raise UserError(f"--limit is {options.limit} but must be 1 or more")
    if options.export is not None and options.export.suffix != ".html":
        raise UserError(
            f"--export is {options.export}, but what it writes is a page; name it {options.export.with_suffix('.html')}"
        )
    study = StudyView(study_folder(options.study))
    filters = filters_from(vars(options))
    study.require_known(filters)
    return _export(study, filters, options) if options.export is not None else _serve(study, filters, options)


def _export(study: "StudyView", filters: "Filters", options: argparse.Namespace) -> int:
    from eval.viewer.page import export_page

    written, passed = export_page(study, filters, options.limit, options.export)
    if options.json:
        print(json.dumps({"file": str(options.export), "questions": written, "found": passed}))
    else:
        print(f"{options.export}: {written} of {passed} questions, {options.export.stat().st_size / 1e3:,.0f} kB")
    return 0


def _serve(study: "StudyView", filters: "Filters", options: argparse.Namespace) -> int:
    from dataclasses import asdict

    from eval.viewer.server import ViewServer

    chosen = {name: value for name, value in asdict(filters).items() if value}
    with ViewServer(study, options.port) as server:
        url = server.url + (f"#{urlencode(chosen)}" if chosen else "")
        if options.json:
            print(json.dumps({"url": url}), flush=True)
        else:
            for line in ["REHEARSAL: the models are tiny and random"] * study.recipe.rehearsal + study.notes:
                print(line)
            models = f"{len(study.labels)} model{'s' * (len(study.labels) != 1)}"
            print(f"{study.recipe.study}: {models} at {url} (Ctrl-C ends)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()
    return 0
