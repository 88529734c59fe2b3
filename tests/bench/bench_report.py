"""How long a browser takes to open the report of a study as large as the 14B one, from disk.

    python tests/bench/bench_report.py [--study runs/pocket] [--times 5]

Takes the `transfer.json` of a finished study with trajectories and diagnostics and blows it up: twelve benchmarks, four
arms, three seeds, nine checkpoints, 41 levels, responses of the full length that is embedded. Prints the size of the
page and the seconds from the start of navigation to the end of loading, beside those of an empty page.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.browser import open_browser

from eval.report.build import training_curves
from eval.report.examples import MAX_CHARACTERS
from eval.report.page import draw_figures, render_page
from eval.report.schema import Transfer, read_transfer
from recipes.loading import load_study

ARMS, PER_GROUP, LEVELS, CHECKPOINTS = 4, 4, 41, 9


def enlarge(transfer: dict[str, Any]) -> dict[str, Any]:
    """The report of a study with as many arms, benchmarks, levels, checkpoints and samples."""
    t = json.loads(json.dumps(transfer))
    names = list(t["arms"])
    renamed = {f"arm_{number}": names[number % len(names)] for number in range(ARMS)}
    benchmarks = {g: [f"{g}_{n}" for n in range(PER_GROUP)] for g in t["groups"]}
    source = {f"{g}_{n}": members[n % len(members)] for g, members in t["groups"].items() for n in range(PER_GROUP)}
    t["groups"] = benchmarks
    for key in ("questions", "clusters", "samples"):
        t[key] = {name: t[key][old] for name, old in source.items()}

    def widen(part: dict[str, Any]) -> dict[str, Any]:
        result = part | {"benchmarks": {name: part["benchmarks"][old] for name, old in source.items()}}
        if "without" in part:
            result["without"] = {
                g: {name: next(iter(rows.values())) for name in benchmarks[g]} for g, rows in part["without"].items()
            }
        return result

    pair = t["contrasts"][0]
    pair["benchmarks"] = {name: next(iter(pair["benchmarks"].values())) for name in source}
    pairs = [pair | {"first": a, "second": b} for n, a in enumerate(renamed) for b in list(renamed)[n + 1 :]]
    for part in (t, *t["readings"].values()):
        part["base"] = widen(part["base"])
        part["arms"] = {arm: widen(part["arms"][old]) for arm, old in renamed.items()}
        part["contrasts"] = pairs
    scores = dict.fromkeys(("base", *renamed), 50.0)
    t["cells"] = [
        {"benchmark": name, "prompting": p, "scoring": s, "rule": "boxed", "scores": scores}
        for name in source
        for p in ("paper", "robust")
        for s in ("paper", "robust")
    ]
    t["budget"] = {arm: t["budget"][old] for arm, old in renamed.items()}
    t["settings"] = {arm: t["settings"][old] for arm, old in renamed.items()}
    c = t["certificate"]
    c["differs"] = {key: {arm: values[old] for arm, old in renamed.items()} for key, values in c["differs"].items()}
    for key in ("problems", "with_gradient"):
        c["presented"][key] = {arm: c["presented"][key][old] for arm, old in renamed.items()}
    _enlarge_trajectory(t["trajectory"], renamed)
    _enlarge_shifts(t["diagnostics"], renamed)
    text = ("So the answer is x = 7, because 3 + 4 = 7. " * (MAX_CHARACTERS // 40))[:MAX_CHARACTERS]
    response = {"thinking": text, "text": text, "outcome": "correct"}
    example = t["examples"][0] | {"prompt": text, "responses": dict.fromkeys(("base", *renamed), response)}
    t["examples"] = [example | {"benchmark": name, "group": "math"} for name in source for _ in range(2)]
    t["models"] = {f"model-{n}": next(iter(t["models"].values())) for n in range(1 + 3 * ARMS)}
    return t


def _enlarge_trajectory(t: dict[str, Any], renamed: dict[str, str]) -> None:
    def longer(values: list[Any]) -> list[Any]:
        return [values[place % len(values)] for place in range(CHECKPOINTS)]

    t["arms"] = {
        arm: {
            "steps": list(range(CHECKPOINTS)),
            "axes": {name: longer(values) for name, values in t["arms"][old]["axes"].items()},
            "gains": {group: longer(values) for group, values in t["arms"][old]["gains"].items()},
        }
        for arm, old in renamed.items()
    }
    t["equal_gain"] = []
    t["best_heldout_gain"] = dict.fromkeys(renamed, 0.0)
    if t["razor"] is not None and t["razor"]["r2"] is not None:
        t["razor"]["residuals"] = dict.fromkeys(renamed, next(iter(t["razor"]["residuals"].values())))


def _enlarge_shifts(t: dict[str, Any], renamed: dict[str, str]) -> None:
    arms = {arm: json.loads(json.dumps(t["arms"][old])) for arm, old in renamed.items()}
    for shift in arms.values():
        shift["levels"] = LEVELS
        for poolings in shift["layers"].values():
            for measures in poolings.values():
                for name, levels in measures.items():
                    measures[name] = [levels[place % len(levels)] for place in range(LEVELS)]
    t["levels"], t["arms"] = LEVELS, arms


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--study", type=Path, default=Path("runs/pocket"))
    parser.add_argument("--times", type=int, default=5)
    options = parser.parse_args()
    recipe = load_study(options.study)
    transfer = Transfer.model_validate(enlarge(read_transfer(options.study).dump()))
    curves = training_curves(recipe, options.study)
    curves = {f"arm_{n}": list(curves.values())[n % len(curves)] for n in range(ARMS)}
    started = time.perf_counter()
    page = render_page(transfer, recipe, draw_figures(transfer, curves, {}), {})
    print(f"made in {time.perf_counter() - started:.1f} s, {len(page.encode()) / 1e6:.2f} MB")
    with tempfile.TemporaryDirectory() as folder, open_browser() as browser:
        for name, text in (("empty", "<!doctype html><title>empty</title>"), ("report", page)):
            path = Path(folder) / f"{name}.html"
            path.write_text(text)
            seconds = [browser.open(path) for _ in range(options.times)]
            low, middle, high = min(seconds), statistics.median(seconds), max(seconds)
            print(f"{name}: {middle:.3f} s, of {options.times} ({low:.3f} to {high:.3f})")
        assert browser.problems == [], browser.problems


if __name__ == "__main__":
    main()
