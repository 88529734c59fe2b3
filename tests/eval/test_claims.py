"""Claims and journals: who generates a response, what is free again after a kill, what is read of a cut file."""

import os
from types import SimpleNamespace

import pytest

from eval.responses.claims import Claims
from eval.responses.journal import Journal, JournalEntry, JournalIndex
from recipes.errors import UserError


def items(*indices, unit="sum"):
    return [(unit, index) for index in indices]


def die(claims):
    """What the kernel does when the process of a worker is killed."""
    claims._worker_lock.release()


def test_an_item_is_claimed_once_and_a_worker_takes_only_what_it_asked_for(tmp_path):
    with Claims(tmp_path) as first, Claims(tmp_path) as second:
        candidates = iter(items(0, 1, 2, 3))
        assert first.claim(candidates, 2) == items(0, 1)
        assert list(candidates) == items(2, 3)  # not taken from the queue
        assert second.claim(iter(items(0, 1, 2, 3)), 5) == items(2, 3)
        assert first.claim(iter(items(2, 3)), 1) == []
        assert first.claim(iter(items(2, unit="sort")), 1) == items(2, unit="sort")  # another unit's


def test_what_a_dead_worker_had_not_finished_is_claimed_again_once(tmp_path):
    dead, second, third = (Claims(tmp_path) for _ in range(3))
    with dead, second, third:
        assert dead.claim(iter(items(0, 1, 2, 3)), 4) == items(0, 1, 2, 3)
        for worker in (second, third):
            assert worker.claim(iter(items(0, 1, 2, 3)), 9) == []
            assert worker.reclaim(9, lambda item: True, lambda item: False) == []  # its owner lives
        die(dead)
        assert second.reclaim(2, lambda item: item[1] != 3, lambda item: item[1] == 0) == items(1, 2)
        assert third.reclaim(9, lambda item: True, lambda item: item[1] == 0) == items(3)
        assert second.reclaim(9, lambda item: True, lambda item: item[1] == 0) == []


def test_claims_of_dead_workers_alone_are_dropped(tmp_path):
    with Claims(tmp_path) as dead:
        dead.claim(iter(items(0)), 1)
        die(dead)
        with Claims(tmp_path) as alone:
            assert alone.claim(iter(items(0)), 1) == items(0)


def test_a_line_that_was_cut_off_by_a_kill_claims_nothing_and_hides_nothing(tmp_path):
    with Claims(tmp_path) as first, Claims(tmp_path) as second:
        first.claim(iter(items(0)), 1)
        with (tmp_path / "claims.jsonl").open("a") as file:
            file.write('\n["killed", "sum", [1, 2')
        assert second.claim(iter(items(0, 1)), 2) == items(1)
        assert first.claim(iter(items(1, 2)), 2) == items(2)


@pytest.fixture
def unit(tmp_path):
    return SimpleNamespace(directory=tmp_path, version="ab12", chunk_of=lambda question: question // 2)


def test_responses_of_all_workers_are_found_and_a_cut_line_is_not(unit, tmp_path):
    entries = [
        JournalEntry(0, 0, "one\u2028line \N{GRINNING FACE}", 4),
        JournalEntry(0, 1, "", 0),
        JournalEntry(3, 0, "three", 1),
    ]
    first, second = Journal(unit, "a"), Journal(unit, "b")
    index = JournalIndex(unit)
    assert index.refresh() == []
    first.append(entries[0])
    second.append(entries[1])
    assert index.refresh() == entries[:2]
    with (tmp_path / "answers-ab12-a.jsonl").open("ab") as file:
        file.write(b'{"question": 1, "sample": 0, "te')
    assert index.refresh() == []
    second.append(entries[2])
    assert index.refresh() == entries[2:]
    assert ((0, 1) in index, (1, 0) in index, (3, 0) in index) == (True, False, True)
    assert (index.count({0}), index.count({0, 1})) == (2, 3)
    assert index.read([(3, 0), (0, 0)]) == [entries[2], entries[0]]
    assert [path.name for path in index.files()] == ["answers-ab12-a.jsonl", "answers-ab12-b.jsonl"]
    assert JournalIndex(SimpleNamespace(directory=tmp_path, version="other")).refresh() == []


def test_a_damaged_line_is_skipped_and_a_response_that_no_file_can_hold_is_refused(unit, tmp_path):
    (tmp_path / "answers-ab12-a.jsonl").write_bytes(b"\0\0\0\n" + b'{"question": 1}\n')
    journal, index = Journal(unit, "a"), JournalIndex(unit)
    journal.append(JournalEntry(1, 0, "x", 1))
    assert index.refresh() == [JournalEntry(1, 0, "x", 1)]
    size = os.path.getsize(tmp_path / "answers-ab12-a.jsonl")
    with pytest.raises(UserError, match="half of a surrogate pair"):
        journal.append(JournalEntry(2, 0, "\ud800", 1))
    assert os.path.getsize(tmp_path / "answers-ab12-a.jsonl") == size
