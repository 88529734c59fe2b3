"""`transfer check`: what an unmatched study lists and says to do."""

import shutil


def test_a_difference_of_recipe_and_runs_is_listed_once_with_what_to_do(smoke_study, transfer, tmp_path):
    result = transfer("check", shutil.copytree(smoke_study, tmp_path / "study"), "varies=[sampling]")
    assert result.returncode == 2
    lines = result.stdout.splitlines()
    assert [line for line in lines if "credit:" in line] == [
        "  credit: off_policy_sft uniform, on_policy_sft uniform, grpo advantage"
    ]
    assert "make them equal, add the setting to `varies` if the study is about it, or set `unmatched: stamp`" in lines


def test_pick_without_a_trajectory_says_how_to_have_it_for_good(smoke_study, transfer):
    result = transfer("pick", smoke_study)
    assert result.returncode == 2
    assert "add `trajectory: {}` to its recipe for good, and train.snapshots=8 for checkpoints" in result.stderr
