"""The terminal table: known numbers in, the words a reader must see out."""

from eval.report.schema import ArmResult
from eval.report.table import format_report
from eval.report.wording import index_text
from tests.support.reports import arm_values, base_values, estimate, make_transfer, reading


def arm(math, other, index, status="identified"):
    found = status == "identified"
    cell = {"estimate": 50.0, "interval": index, "method": "Fieller" if found else None, "status": status,
            "reason": None if found else "the interval: it contains zero"}  # fmt: skip
    scores = {"sum": estimate(70.0, 65.0, 75.0), "sort": estimate(40.0, 35.0, 45.0)}
    return arm_values({"math": math, "other": other}, scores, {"other": cell})


GAINED = arm(estimate(20.0, 15.0, 25.0), estimate(10.0, 5.0, 15.0), estimate(50.0, 24.6, 80.4))
FELL = arm(estimate(-20.0, -25.0, -15.0), estimate(-10.0, -15.0, -5.0), None, "not identified")
FLAT = arm(estimate(1.0, -3.0, 5.0), estimate(9.0, 5.0, 13.0), None, "not identified")


def test_index_is_shown_only_where_math_rose():
    assert index_text(ArmResult.model_validate(GAINED), "points", "other", "math") == "+50 [+25, +80]"
    assert index_text(ArmResult.model_validate(GAINED), "points", "math", "math") == "100"
    for group in ("other", "math"):
        assert index_text(ArmResult.model_validate(FLAT), "points", group, "math") == "not identified"


def test_table_lines():
    base = base_values(dict.fromkeys(("sum", "sort"), estimate(50.0, 45.0, 55.0)))
    claim = {
        "first": "a",
        "second": "base",
        "group": "math",
        "verdict": "supported",
        "difference": estimate(20.0, 15.0, 25.0),
        "p_value": 0.001,
        "p_holm": 0.001,
    }
    transfer = make_transfer(
        status="UNMATCHED",
        differences=["arm a: steps 1, arm b: steps 2"],
        seeds=[0, 1],
        groups={"math": ["sum"], "other": ["sort"]},
        base=base,
        arms={"a": GAINED, "an_arm_with_a_rather_long_name": FELL},
        readings={"robust": reading(base, {}), "paper": reading(base, {"a": FELL}, {"sum": ["paper", "paper"]})},
        warnings=[{"code": "many_truncated", "message": "sum: cut off"}],
        analysis={"sha256": "", "before": [], "after": ["definition"], "claims": [claim]},
    )
    lines = [line.split() for line in format_report(transfer).splitlines()]
    assert lines[0][:4] == ["s:", "UNMATCHED;", "2", "seeds;"]
    assert ["a", "+20.0", "[+15.0,", "+25.0]", "+10.0", "[+5.0,", "+15.0]"] in lines
    assert ["an_arm_with_a_rather_long_name", "not", "identified", "not", "identified"] in lines
    assert lines[lines.index(["scores", "in", "percent"]) + 1][:2] == ["benchmark", "base"]
    assert ["sort", "50.0", "40.0", "40.0"] in lines
    assert lines[-2][0] == "UNMATCHED"
    assert lines[-1] == ["warning", "sum:", "cut", "off"]
    assert ["a", "-20.0", "[-25.0,", "-15.0]", "-10.0", "[-15.0,", "-5.0]"] in lines  # the other reading
    alike = dict.fromkeys(("robust", "paper"), transfer.readings["paper"])
    assert "in the reading" not in format_report(transfer.model_copy(update={"readings": alike}))
    assert ["decided", "after", "the", "evaluation", "began:", "definition"] in lines
    assert any(line[:7] == ["claim", "a", "above", "base", "on", "math:", "supported,"] for line in lines)
