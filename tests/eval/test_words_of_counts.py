"""Problems that an arm was presented and its exposures are two counts, and are called so wherever they are shown."""

import re
from types import SimpleNamespace

from eval.report.page import page_templates, render_summary
from launch.planning.plan import build_plan
from launch.planning.plan_text import format_plan
from launch.stages import build_stages
from recipes.loading import load_recipe
from tests.paths import SMOKE
from tests.support.reports import RUN, make_transfer
from train.accounting.lineage import format_lineage

REPORT = make_transfer(budget={"grpo": [RUN]})
"""8 problems presented, 16 exposures, 6 problems with a gradient."""


def test_the_budget_and_the_certificate_count_problems_and_exposures_by_their_names():
    counts = {"equal": True, "problems": {"grpo": 8}, "with_gradient": {"grpo": 6}}
    certificate = SimpleNamespace(presented=SimpleNamespace(**counts), varies=[], differs={}, shared={})
    t = SimpleNamespace(
        budget=REPORT.budget, certificate=certificate, status="matched", differences=[], any_started=False
    )
    template = page_templates().get_template("ledger.html.j2")
    page = template.render(t=t, figures={"curves": ""}, clock={}, clock_unit="core-hours")
    rows = re.findall(r"<tr><td>([^<]*)</td><td>([^<]*)</td>", page)
    assert [row for row in rows if row[1] in ("8", "6", "16")] == [
        ("problems presented", "8"),
        ("of them with a gradient", "6"),
        ("exposures", "16"),
        ("problems presented", "8"),
        ("of them with a gradient", "6"),
    ]


def test_the_summary_and_the_lineage_call_the_same_number_exposures():
    table = [line.split("|") for line in render_summary(REPORT).splitlines() if "GRPO" in line or "TFLOPs" in line]
    (column,) = (number for number, cell in enumerate(table[0]) if cell.strip() == "exposures")
    assert table[1][column].strip() == "16"
    arm = {"problems_presented": 8, "exposures": 16, "problems_contributed": 6}
    seed = {"arms": {"grpo": arm}, "differences": {}, "reference": "grpo", "unfinished": []}
    text = format_lineage({"study": "s", "seeds": {"0": seed}, "compared": True, "equal": True})
    assert re.search(r"grpo +8 problems presented, +16 exposures; 6 problems had a gradient", text)


def test_the_plan_counts_exposures(tmp_path):
    """4 steps of 8 problems; the corpus has 16."""
    recipe = load_recipe(SMOKE)
    plan = build_plan(recipe, build_stages(recipe), tmp_path)
    assert plan.arms["grpo"].exposures == 32
    heading, row = (line.split() for line in format_plan(plan).splitlines() if re.match(r"(arm|grpo) +(runs|1) ", line))
    assert row[heading.index("exposures")] == "32"
