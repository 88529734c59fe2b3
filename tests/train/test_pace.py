"""When a run that got a signal waits for its update, and when it ends at once: by a clock that the tests move."""

import json
import os
import signal
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from train.runtime import heartbeat, pace, preemption, ranks
from train.runtime.heartbeat import Heartbeat, generated_tokens, server_progress
from train.runtime.pace import Pace, cut_short, read_pace
from train.runtime.preemption import PaceKeeper, StopOnSignal
from train.runtime.ranks import PreemptedError, seconds_left


@pytest.fixture
def clock(monkeypatch):
    """A clock that tests move; every module that measures reads it."""
    now = [1000.0]
    for module in (heartbeat, pace, preemption, ranks):
        monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
        monkeypatch.setattr(module.time, "time", lambda: now[0])
    return now


@pytest.fixture
def told(monkeypatch):
    """SIGUSR1 noted at a second of the clock, with 300 seconds to the kill."""

    def note(second, limit="300"):
        monkeypatch.setattr(ranks, "_noted", [("SIGUSR1", second)])
        monkeypatch.setenv("TRANSFER_SIGNAL_SECONDS", limit)

    return note


def test_seconds_left_are_a_tenth_less_than_the_script_says(clock, told, monkeypatch):
    assert seconds_left() is None
    told(990.0)
    assert seconds_left() == 260.0
    for nothing in ("", "soon", "-5"):
        told(990.0, nothing)
        assert seconds_left() is None


def test_the_first_signal_counts_however_often_it_is_repeated(clock, monkeypatch):
    monkeypatch.setenv("TRANSFER_SIGNAL_SECONDS", "100")
    before = {number: signal.getsignal(number) for number in ranks.SIGNALS}
    try:
        ranks.listen()
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGUSR1)
            clock[0] += 10
        assert seconds_left() == 60.0
        assert ranks.noted_signal() == "SIGUSR1"
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        ranks._noted.clear()


def test_an_update_that_fits_is_waited_for_and_one_that_does_not_is_cut_short(clock, told):
    """270 seconds may be used. An update takes 400, a checkpoint 50; the update began 100 seconds before the signal."""
    going = Pace(step=7, steps=20, saved_step=6, since=clock[0], seconds=400.0, save_seconds=50.0)
    assert cut_short(going) is None  # no signal
    clock[0] += 100
    told(clock[0])
    assert going.needed() == 350.0
    assert cut_short(going) == (
        "stopped by SIGUSR1 in the middle of step 8 of 20, which cannot be finished and saved before the process is "
        "killed; the same command continues from step 6"
    )
    clock[0] += 81  # the same update, a signal that came later
    told(clock[0])
    assert cut_short(going) is None
    clock[0] += 219  # its mean time is over: there must be time for the checkpoint
    assert going.needed() == 50.0
    assert cut_short(going) is None
    clock[0] += 2
    assert cut_short(going) is not None


def test_before_the_first_update_the_deadline_alone_counts(clock, told):
    told(clock[0])
    clock[0] += 269
    assert cut_short(None) is None
    clock[0] += 2
    assert "before its first step" in cut_short(None)
    assert "continues from the beginning" in cut_short(None)


def trained(directory, monkeypatch):
    """Arguments and state of a Trainer's callbacks."""
    arguments = TrainingArguments(output_dir=str(directory), use_cpu=True, report_to=[])
    return arguments, TrainerState(max_steps=20), TrainerControl()


def test_pace_is_measured_from_stop_to_stop(clock, tmp_path, monkeypatch):
    """Two updates share a sampling: 30 + 10 seconds, then a checkpoint of 5; then 34 + 12."""
    (tmp_path / "ranks").mkdir()
    keeper = PaceKeeper(tmp_path, 20, saved_step=4, steps_per_generation=2)
    arguments, state, control = trained(tmp_path, monkeypatch)
    clock[0] += 500  # loading
    keeper.on_train_begin(arguments, state, control)
    assert read_pace(tmp_path / "ranks") == Pace(4, 20, 4, 1500.0, None, 0.0)
    for step, seconds in ((5, 30), (6, 10)):
        clock[0] += seconds
        state.global_step = step
        keeper.on_step_end(arguments, state, control)
    assert keeper.pace == Pace(6, 20, 4, 1540.0, 40.0, 0.0)
    clock[0] += 5
    keeper.on_save(arguments, state, control)
    assert keeper.pace == Pace(6, 20, 6, 1545.0, 40.0, 5.0)
    for step, seconds in ((7, 34), (8, 12)):
        clock[0] += seconds
        state.global_step = step
        keeper.on_step_end(arguments, state, control)
    assert read_pace(tmp_path / "ranks") == Pace(8, 20, 6, 1591.0, 43.0, 5.0)
    PaceKeeper(tmp_path, 20)
    assert read_pace(tmp_path / "ranks") is None  # that of an earlier attempt


def test_after_an_update_a_checkpoint_is_written_only_if_there_is_time(clock, told, tmp_path, monkeypatch):
    keeper = PaceKeeper(tmp_path, 20)
    keeper.pace = Pace(5, 20, 4, clock[0], 10.0, 30.0)
    arguments, state, control = trained(tmp_path, monkeypatch)
    stop = StopOnSignal(keeper)
    state.global_step = 5
    told(clock[0] - 239)
    stop.on_step_end(arguments, state, control)
    assert (control.should_save, control.should_training_stop, stop.stopped_at) == (True, True, 5)
    told(clock[0] - 241)
    with pytest.raises(PreemptedError, match=r"SIGUSR1 after step 5, too late to save it; .* from step 4"):
        StopOnSignal(keeper).on_step_end(arguments, state, TrainerControl())


def test_a_checkpoint_is_due_by_the_first_ranks_clock_also_in_the_middle_of_many_updates(clock, tmp_path, monkeypatch):
    keeper = PaceKeeper(tmp_path, 20, steps_per_generation=2)
    arguments, state, control = trained(tmp_path, monkeypatch)
    stop = StopOnSignal(keeper, save_minutes=10)
    keeper.on_train_begin()

    def saves_at(step, seconds, rank_answers=lambda rows: rows):
        monkeypatch.setattr(preemption, "gathered", rank_answers)
        clock[0] += seconds
        state.global_step, control.should_save = step, False
        stop.on_step_end(arguments, state, control)
        assert not control.should_training_stop
        return control.should_save

    assert not saves_at(2, 599)
    assert not saves_at(3, 100)  # inside of a batch
    assert saves_at(4, 0)
    keeper.on_save(arguments, state, control)
    assert not saves_at(6, 599)
    assert not saves_at(8, 1, lambda rows: [(None, False, False), *rows])  # this rank's clock is ahead of the first's
    assert saves_at(10, 0, lambda rows: [*rows, (None, False, False)])


def test_a_heartbeat_touches_the_file_once_a_second_and_ends_a_lone_process(clock, told, tmp_path):
    (tmp_path / "ranks").mkdir()
    file = tmp_path / "ranks" / "0.pid"
    file.write_text("host 1")
    os.utime(file, (1, 1))
    heart = Heartbeat(tmp_path, PaceKeeper(tmp_path, 20))
    heart()
    assert file.stat().st_mtime > 1
    os.utime(file, (1, 1))
    clock[0] += 0.9
    heart()
    assert file.stat().st_mtime == 1
    clock[0] += 0.2
    heart()
    assert file.stat().st_mtime > 1
    told(clock[0] - 280)
    clock[0] += 1.1
    with pytest.raises(PreemptedError, match="in the middle of step 1 of 20"):
        heart()


def test_with_other_ranks_a_heartbeat_ends_nothing(clock, told, tmp_path, monkeypatch):
    """They would wait for it in a collective; the process that started them ends them."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    told(clock[0] - 280)
    Heartbeat(tmp_path, PaceKeeper(tmp_path, 20))()


class Engine:
    steps = 0

    def step(self, *arguments):
        self.steps += 1
        return ["output", *arguments]


def test_every_step_of_an_engine_is_a_heartbeat(clock, tmp_path):
    (tmp_path / "ranks").mkdir()
    file = tmp_path / "ranks" / "0.pid"
    file.write_text("host 1")
    engine = Engine()
    Heartbeat(tmp_path, PaceKeeper(tmp_path, 20)).follow_engine(engine)
    for _ in range(3):
        clock[0] += 2
        os.utime(file, (1, 1))
        assert engine.step(7) == ["output", 7]
        assert file.stat().st_mtime > 1
    assert engine.steps == 3


def test_tokens_of_a_server_are_summed_over_its_engines():
    text = (
        "# HELP vllm:generation_tokens_total Number of generation tokens processed.\n"
        'vllm:generation_tokens_total{engine="0",model_name="base"} 1200.0\n'
        'vllm:generation_tokens_total{engine="1",model_name="base"} 34.0\n'
        'vllm:prompt_tokens_total{engine="0",model_name="base"} 7.0\n'
    )
    assert generated_tokens(text) == 1234.0
    assert generated_tokens("") == 0.0


def test_a_server_beats_only_while_it_generates(monkeypatch):
    """Four answers: 10, 10, 15 and 15 tokens; one of them is progress."""
    counts, asked = [10, 10, 15, 15], []

    class Metrics(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(f"vllm:generation_tokens_total {counts[min(len(asked), 4) - 1]}\n".encode())

        def log_message(self, *arguments):
            pass

    monkeypatch.setattr(heartbeat, "_ASK_SERVER_EVERY_SECONDS", 0.02)
    server = HTTPServer(("127.0.0.1", 0), Metrics)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    reported = []
    with server_progress(f"http://127.0.0.1:{server.server_port}", lambda: reported.append(len(asked))):
        deadline = time.monotonic() + 10
        while len(asked) < 6 and time.monotonic() < deadline:
            time.sleep(0.01)
    server.shutdown()
    server.server_close()
    assert set(asked) == {"/metrics"}
    assert reported == [3]


def test_what_was_written_by_another_version_is_no_pace(tmp_path):
    (tmp_path / "pace.json").write_text(json.dumps({"step": 1}))
    assert read_pace(tmp_path) is None
