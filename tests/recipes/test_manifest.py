"""Manifests: what is done, resumed, replaced and named; writes that a kill or a full disk cannot tear."""

import errno
import json
import os
import subprocess
from pathlib import Path

import pytest

from recipes.errors import UserError
from recipes.files import hash_json, is_locked, locked, write_atomic, write_json
from recipes.manifest import describe_changes, finish_stage, read_manifest, stage_state, start_stage
from tests.paths import ROOT


def test_hash_is_independent_of_key_order_and_known():
    assert hash_json({"b": 1, "a": [2]}) == hash_json({"a": [2], "b": 1})
    # sha256 of the bytes {"a": 1}
    assert hash_json({"a": 1}) == "f9d86028c6e0d64e225186f96acb69338b2c59764df79162107f5c4bb34d1310"


def test_life_of_a_stage(tmp_path):
    stage = tmp_path / "arms" / "grpo"
    inputs = {"beta": 0, "output of base": "x"}
    assert stage_state(stage, inputs).state == "new"
    assert start_stage(stage, "arms/grpo", inputs) is False
    assert stage_state(stage, inputs).state == "resume"
    (stage / "half").write_text("half done")
    assert start_stage(stage, "arms/grpo", inputs) is True
    assert (stage / "half").exists()
    finish_stage(stage, {"weights": "abc"}, {"steps": 3})
    assert stage_state(stage, inputs).state == "done"
    assert read_manifest(stage)["output_hash"] == hash_json({"weights": "abc"})

    changed = stage_state(stage, {"beta": 0.1, "output of base": "x"})
    assert changed == ("changed", ("beta: 0 -> 0.1",))
    start_stage(stage, "arms/grpo", {"beta": 0.1, "output of base": "x"})
    assert not (stage / "half").exists()
    kept = list((tmp_path / "replaced").iterdir())
    assert [(path / "half").read_text() for path in kept] == ["half done"]
    start_stage(stage, "arms/grpo", inputs)  # and back again: both are kept
    assert sorted(path.name for path in (tmp_path / "replaced").iterdir()) == ["arms--grpo-1", "arms--grpo-2"]


def test_every_version_of_the_code_that_worked_on_a_stage_is_recorded(tmp_path):
    for code, recorded in (("a", "a"), ("b", "a+b"), ("b", "a+b"), ("a", "a+b+a")):
        start_stage(tmp_path / "base", "base", {}, code)
        assert read_manifest(tmp_path / "base")["code"] == recorded


def test_changed_outputs_of_other_stages_are_a_line_each_way(tmp_path):
    before = {"seeds": [0], "output of base": "a", "output of corpus": "c", "output of eval/sft": "d"}
    start_stage(tmp_path / "report", "report", before)
    more = {f"output of eval/grpo-seed{seed}": None for seed in range(5)}
    changed = stage_state(
        tmp_path / "report", {"seeds": [0, 1], "output of base": None, "output of corpus": "c", **more}
    )
    assert changed.reasons == (
        "seeds: [0] -> [0, 1]",
        "also reads eval/grpo-seed0, eval/grpo-seed1, eval/grpo-seed2 and 2 more stages",
        "no longer reads eval/sft",
        "reads another output of base",
    )


def test_directory_without_a_readable_manifest_starts_over(tmp_path):
    stage = tmp_path / "base"
    stage.mkdir()
    (stage / "manifest.json").write_text('{"cut off')
    (stage / "rest").write_text("")
    assert stage_state(stage, {}).state == "new"
    assert start_stage(stage, "base", {}) is False
    assert not (stage / "rest").exists()
    assert (tmp_path / "replaced" / "base-1" / "rest").exists()


def test_manifest_that_cannot_be_read_now_is_not_taken_for_none(tmp_path, monkeypatch):
    def stale(self, encoding):
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr(Path, "read_text", stale)
    with pytest.raises(UserError, match="Stale file handle; nothing was changed"):
        stage_state(tmp_path / "base", {})


def test_describe_changes_names_added_removed_and_changed():
    assert describe_changes({"a": 1, "b": 2}, {"b": 3, "c": None}) == [
        "a: 1 -> absent",
        "b: 2 -> 3",
        "c: absent -> null",
    ]
    section = {"a": 1, "b.c": 2, "b.d.e": 3}
    assert describe_changes({"a": 1, "b": None}, section) == ['b: null -> {"c": 2, "d.e": 3}']
    assert describe_changes(section, {"a": 1, "b": None}) == ['b: {"c": 2, "d.e": 3} -> null']


def test_changes_of_lists_are_told_by_the_names_of_their_items():
    source = {"name": "a", "kind": "file", "path": "a.csv"}
    other = {"name": "b", "kind": "hub", "path": None}

    def told(before, after):
        return describe_changes({"corpus.sources": before}, {"corpus.sources": after})

    assert told([source, other], [source | {"path": "c.csv"}, other]) == ['corpus.sources.a.path: "a.csv" -> "c.csv"']
    assert told([source], [source, other]) == ['corpus.sources.b: absent -> {"name": "b", "kind": "hub", "path": null}']
    assert told([source, other], [other, source]) == ['corpus.sources: ["a", "b"] -> ["b", "a"]']
    assert told([source, other], [source, other]) == []
    twice = [source, source | {"path": "d.csv"}]  # names that do not tell the items apart
    assert told([source], twice)[0].startswith("corpus.sources: ")
    # Long texts are cut, but to what differs.
    folder = "/a/long/folder" * 6
    assert told([source | {"path": f"{folder}/one.csv"}], [source | {"path": f"{folder}/two.csv"}]) == [
        'corpus.sources.a.path: …long/folder/one.csv" -> …long/folder/two.csv"'
    ]
    assert describe_changes({"h": "a" * 64}, {"h": "b" * 64}) == ["h changed"]


def test_failed_write_leaves_the_old_file_and_no_rest(tmp_path, monkeypatch):
    path = tmp_path / "file.json"
    write_json(path, {"old": 1})

    def full_disk(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_json(path, {"new": 2})
    assert json.loads(path.read_text()) == {"old": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.json"]


def test_write_atomic_replaces_content(tmp_path):
    path = tmp_path / "deep" / "file"
    write_atomic(path, b"\x00\x01")
    write_atomic(path, "text")
    assert path.read_bytes() == b"text"


def test_second_writer_is_refused_and_a_dead_one_forgotten(tmp_path):
    import sys

    root = ROOT
    code = f"import sys; sys.path.insert(0, {str(root)!r})\n"
    code += "from pathlib import Path\nfrom recipes.files import locked\n"
    code += f"with locked(Path({str(tmp_path)!r})): print('held', flush=True); sys.stdin.read()"
    holder = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(UserError, match="being written by another process"), locked(tmp_path):
        pass
    holder.kill()
    holder.wait()
    with locked(tmp_path):
        pass


def test_a_folder_without_locks_is_refused_and_not_locked_by_a_file_that_stays(tmp_path, monkeypatch):
    def no_locks(file, operation):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", no_locks)
    sentence = r"cannot be locked \(Function not implemented\); make it writable, on a file system with locks"
    with pytest.raises(UserError, match=sentence), locked(tmp_path):
        pass
    assert not is_locked(tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a second user")
def test_another_user_sees_that_a_folder_is_locked(tmp_path):
    """`transfer status` of a colleague's study: the lock file can be read and not written."""

    def asked():
        folder = os.open(tmp_path, os.O_RDONLY)
        pid = os.fork()
        if pid == 0:  # a second user who cannot enter the folders above
            os.fchdir(folder)
            os.setuid(65534)
            os._exit(int(is_locked(Path("."))))
        os.close(folder)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1

    tmp_path.chmod(0o755)
    with locked(tmp_path):
        assert asked()
    assert not asked()
