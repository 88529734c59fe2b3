"""A study of another domain than math, from the files of `transfer init` to its report."""

import json

import pytest


@pytest.mark.slow
def test_a_study_of_law_ends_in_a_report_about_law(transfer, tmp_path):
    recipe = tmp_path / "law" / "study.yaml"
    assert transfer("init", "study", recipe).returncode == 0
    small = ["model.pocket.documents=3000", "train.steps=20", "suite.questions=10"]
    result = transfer("run", recipe, *small, cwd=tmp_path)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    report = tmp_path / "runs" / "law" / "report"
    values = json.loads((report / "transfer.json").read_text())
    assert values["trained_group"] == "law"
    assert "gains in points" in result.stdout
    texts = [(report / name).read_text() for name in ("index.html", "summary.md")]
    # The table of versions names a package, and nothing else has the word.
    for text in [*texts, result.stdout, *(path.read_text() for path in report.glob("figures/*.svg"))]:
        assert "math" not in text.lower().replace("math-verify", "")
    assert all("law" in text for text in [*texts, result.stdout])
    # Demonstrations teach to answer with a letter, which the base never does, so GRPO that starts there has rewards.
    rewards = [
        json.loads(line).get("reward", 0.0)
        for line in (tmp_path / "runs/law/arms/grpo/seed-0/metrics.jsonl").read_text().splitlines()
    ]
    assert max(rewards) > 0
