"""The terminal table: known numbers in, the words a reader must see out."""

from eval.report.table import format_report, index_text


def interval(estimate, low, high):
    return {"estimate": estimate, "low": low, "high": high}


def arm(math, other, index, method="Fieller"):
    scores = {"sum": {"score": interval(70.0, 65.0, 75.0)}, "sort": {"score": interval(40.0, 35.0, 45.0)}}
    cell = {"estimate": 50.0, "interval": index, "method": method}
    return {"groups": {"math": math, "other": other}, "benchmarks": scores, "index": {"points": {"other": cell}}}


GAINED = arm(interval(20.0, 15.0, 25.0), interval(10.0, 5.0, 15.0), interval(50.0, 24.6, 80.4))
FELL = arm(interval(-20.0, -25.0, -15.0), interval(-10.0, -15.0, -5.0), interval(50.0, 24.6, 80.4))
FLAT = arm(interval(1.0, -3.0, 5.0), interval(9.0, 5.0, 13.0), None, "not identified: the interval contains zero")


def test_index_is_shown_only_where_math_rose():
    assert index_text(GAINED, "points", "other") == "+50 [+25, +80]"
    assert index_text(FELL, "points", "other") == "math fell"
    assert index_text(FLAT, "points", "other") == "not identified"


def test_table_lines():
    transfer = {
        "study": "s",
        "status": "UNMATCHED",
        "differences": ["arm a: steps 1, arm b: steps 2"],
        "seeds": [0, 1],
        "confidence": 0.95,
        "groups": {"math": ["sum"], "other": ["sort"]},
        "base": {"benchmarks": {name: {"score": interval(50.0, 45.0, 55.0)} for name in ("sum", "sort")}},
        "arms": {"a": GAINED, "an_arm_with_a_rather_long_name": FELL},
        "reading": "robust",
        "readings": {"robust": {}, "paper": {"arms": {"a": FELL}}},
        "warnings": ["sum: cut off"],
        "analysis": {
            "after": ["definition"],
            "claims": [
                {
                    "first": "a",
                    "second": "base",
                    "group": "math",
                    "verdict": "supported",
                    "difference": interval(20.0, 15.0, 25.0),
                    "p_holm": 0.001,
                }
            ],
        },
    }
    lines = [line.split() for line in format_report(transfer).splitlines()]
    assert lines[0][:4] == ["s:", "UNMATCHED;", "2", "seed(s);"]
    assert ["a", "+20.0", "[+15.0,", "+25.0]", "+10.0", "[+5.0,", "+15.0]"] in lines
    assert ["an_arm_with_a_rather_long_name", "100", "math", "fell"] in lines
    assert ["sort", "50.0", "40.0", "40.0"] in lines
    assert lines[-2][0] == "UNMATCHED"
    assert lines[-1] == ["warning", "sum:", "cut", "off"]
    assert ["a", "-20.0", "[-25.0,", "-15.0]", "-10.0", "[-15.0,", "-5.0]"] in lines  # the other reading
    assert ["decided", "after", "the", "evaluation", "began:", "definition"] in lines
    assert any(line[:7] == ["claim", "a", "above", "base", "on", "math:", "supported,"] for line in lines)
