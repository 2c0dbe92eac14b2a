"""What a run should be looked at for: planted, it is named; without it nothing is said. And the digest of logs."""

import datetime
from pathlib import Path

import pytest
from watched_runs import NOW, train_row

from r1mega.report.live.advice import Advice, advise
from r1mega.report.live.beats import RankBeat
from r1mega.report.live.log_digest import LogFile, digest_logs, digest_text, logs_of, time_of

STEADY = [train_row(step) for step in range(1, 61)]


def said(train: list, beats: tuple = (), **more: object) -> dict[str, str]:
    found = advise(train, beats, NOW, running=True, **more)  # pyright: ignore[reportArgumentType]
    assert all(isinstance(one, Advice) for one in found)
    return {one.what: one.text for one in found}


def changed(last: int, **changes: object) -> list:
    return [row | changes if row["step"] > 60 - last else row for row in STEADY]


def test_of_a_steady_run_nothing_is_said():
    beats = tuple(RankBeat(rank, "update", 60, NOW - 1, NOW - 2, "n") for rank in range(4))
    assert said(STEADY, beats, limits={"max_abs": 1e-3, "mean": None}, free=(10**12, 10**13)) == {}
    assert said([]) == {}


@pytest.mark.parametrize(
    ("what", "train", "words"),
    [
        ("phase update", changed(1, **{"seconds/update": 9.0}), "update took 9.0 s, 9.0 times its median of 1.0 s"),
        ("speed of update", changed(5, tokens=2000), "fallen to 2000 tokens/s from 5000"),
        ("mismatch", changed(5, **{"mismatch/max": 9e-5}), "risen to 9.00e-05 from 1.00e-05"),
        ("queue", changed(1, **{"rollout/learnt_from": 16.0}), "16 of 512 answers are left to learn from"),
        ("length", changed(1, **{"response_length/truncated": 0.75}), "75% of the answers are cut"),
        ("gradient", changed(1, grad_norm=50.0), "the gradient norm is 50; its median is 0.5"),
        ("numbers", changed(1, loss=None), "loss of the last step is no finite number"),
    ],
)
def test_what_left_its_own_past_behind_is_named(what: str, train: list, words: str):
    found = said(train)
    assert list(found) == [what] and words in found[what]


def test_a_phase_that_goes_on_for_too_long():
    beats = (RankBeat(0, "rollout", 60, NOW - 60, NOW - 1, "n"),)
    assert said(STEADY, beats)["phase rollout"] == (
        "rollout has lasted 60 s, 15.0 times its median of 4.0 s, and goes on"
    )
    assert said(STEADY, (RankBeat(0, "rollout", 60, NOW - 11, NOW - 1, "n"),)) == {}


def test_a_mismatch_near_the_limit_at_which_the_run_stops():
    text = said(STEADY, limits={"max_abs": 1.5e-5})["mismatch"]
    assert text == "the largest mismatch is 1.00e-05; past 1.50e-05 (mismatch.max_abs) the run stops"
    assert said(STEADY, limits={"max_abs": 2.5e-5}) == {}


def test_a_rank_that_stopped_beating_is_named_with_its_host_and_phase():
    beats = tuple(
        RankBeat(rank, "update", 60, NOW - 400, NOW - (300 if rank == 2 else 1), f"n{rank}") for rank in range(4)
    )
    assert said([], beats)["ranks"] == "rank 2 on n2 of 4 ranks stopped beating 5 min 00 s ago, in update"
    assert advise([], beats, NOW, running=False) == []


def test_a_disk_that_is_nearly_full():
    assert said([], free=(2**30, 2**40))["disk"] == "1.0 GiB are free of 1,024"
    assert said([], free=(2**35, 2**45))["disk"] and said([], free=(2**37, 2**38)) == {}


VLLM = """(APIServer pid=13006) INFO 12-01 10:12:31 [api.py:347] starting
(APIServer pid=13006) WARNING 12-01 10:12:31 [cpu.py:224] Triton was not found: 3 tries
(EngineCore pid=13010) WARNING 12-01 10:13:31 [cpu.py:224] Triton was not found: 4 tries
(APIServer pid=13006) ERROR 12-01 10:16:50 [async_llm.py:906] Traceback (most recent call last):
(APIServer pid=13006) ERROR 12-01 10:16:50 [async_llm.py:906]   File "x.py", line 1, in run
(APIServer pid=13006) ERROR 12-01 10:16:50 [async_llm.py:906]     raise ValueError
(APIServer pid=13006) ERROR 12-01 10:16:50 [async_llm.py:906] vllm.exceptions.EngineDeadError: see above
a.py:24: DeprecationWarning: `x` is deprecated
Traceback (most recent call last):
  File "y.py", line 3, in <module>
RuntimeError: CUDA out of memory. Tried 3 GiB
"""


def test_a_log_is_told_in_its_kinds_of_lines():
    written = datetime.datetime(2026, 12, 1, 12, 0).timestamp()
    found = digest_text(VLLM, LogFile(Path("vllm.log"), 1, written))
    assert [(line.level, line.count, line.text) for line in found] == [
        ("warning", 2, "Triton was not found: 4 tries"),
        ("alert", 1, "vllm.exceptions.EngineDeadError: see above"),
        ("alert", 1, "RuntimeError: CUDA out of memory. Tried 3 GiB"),
    ]
    assert found[0].last == datetime.datetime(2026, 12, 1, 10, 13, 31).timestamp()
    assert found[2].last == written  # it does not say


def test_what_every_server_warns_of_is_left_out_and_nothing_else():
    said = """WARNING 12-01 13:28:14 [layerwise.py:266] RotaryEmbedding: Failed to load weights
WARNING 12-01 13:28:14 [layerwise.py:266] QKVParallelLinear: Failed to load weights
(APIServer pid=1) WARNING 12-01 13:43:16 [api.py:6] SECURITY WARNING: Development endpoints are enabled! This is not
(EngineCore pid=7696) WARNING 12-01 13:26:27 [cpu.py:224] Triton is not installed. triton-cpu is expected on x86 CPUs.
"""
    found = digest_text(said, LogFile(Path("vllm.log"), 1, 0.0))
    assert [line.text for line in found] == ["QKVParallelLinear: Failed to load weights"]


def test_a_line_of_last_december_is_no_line_of_the_next():
    january = datetime.datetime(2027, 1, 2, 12, 0).timestamp()
    assert (
        time_of("WARNING 12-31 23:59:58 [a.py:1]", january) == datetime.datetime(2026, 12, 31, 23, 59, 58).timestamp()
    )
    assert time_of("2026-12-01 10:00:00,123 x", january) == datetime.datetime(2026, 12, 1, 10).timestamp()
    assert time_of("WARNING 13-45 10:00:00", january) is None and time_of("no time", january) is None


def test_logs_of_a_run_are_found_and_errors_come_first(tmp_path: Path):
    (tmp_path / "logs").mkdir()
    (tmp_path / ".server").mkdir()
    (tmp_path / "logs/rank_1.log").write_text("WARNING late\n")
    (tmp_path / "logs/rank_2.log").write_text("")
    (tmp_path / "logs/notes.bin").write_text("ERROR not a log\n")
    (tmp_path / ".server/vllm.log").write_bytes(
        b"\xff\xfe ERROR \x1b[31m bad bytes\n" + b"x" * 600_000 + b"\nERROR end"
    )
    logs = logs_of(tmp_path)
    assert sorted(log.path.name for log in logs) == ["rank_1.log", "vllm.log"]
    found = digest_logs(logs)
    assert [(line.level, line.text) for line in found] == [("alert", "ERROR end"), ("warning", "WARNING late")]
