"""Judges of preference data that can judge nothing: what is said, and that no more is asked than tells."""

from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace

import pytest
from endpoint_server import EndpointServer
from preference_run import CONFIG, answer, run, say, write

from r1mega.errors import DataError, EndpointLostError
from r1mega.rewards.gathering import gathered
from r1mega.rewards.preference import PairVerdict
from r1mega.runtime.interrupt import Interrupt
from r1mega.samples import VerdictStatus
from r1mega.stages import judging

ONE_BY_ONE = ("endpoint.concurrency=1", "judge.endpoint.concurrency=1")
SAFETY = CONFIG.replace("[pairs]\nper_question = 2\n", "").replace("[sampling]", 'label = "safety"\n\n[sampling]')


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[EndpointServer]:
    monkeypatch.setenv("A_KEY", "k")
    with EndpointServer(say) as server:
        yield server


def test_where_no_judgement_can_be_read_it_says_so_and_asks_no_more(server: EndpointServer, tmp_path: Path):
    server.say = lambda body: "Well, well." if body["model"] == "judge" else answer(body)

    def asked() -> int:
        return sum(body["model"] == "judge" for body in server.bodies)

    config, few = write(tmp_path, server), ("pairs.retries=0", "pairs.votes=1", *ONE_BY_ONE)
    with pytest.raises(DataError, match=r"unscorable\): one of them: .*'Well, well\.'") as refused:
        run(config, tmp_path / "run", *few)
    assert "min_gap" not in str(refused.value) and "judge.jsonl" in str(refused.value)
    num = asked()
    with pytest.raises(DataError, match=r"no answer of \d+ is marked .*: one of them: .*'Well, well\.'"):
        few = ("safety.retries=0", "safety.votes=1", *ONE_BY_ONE)
        run(write(tmp_path / "s", server, SAFETY), tmp_path / "safe", *few)
    assert 2 < num < asked()


def test_the_first_judgements_tell_whether_more_are_asked_for(monkeypatch: pytest.MonkeyPatch):
    """All of them unscorable, nothing more is asked; one that is scored, and all are."""
    monkeypatch.setattr(judging, "AT_ONCE", 1)
    bad, good = PairVerdict(VerdictStatus.UNSCORABLE, reason="mute"), PairVerdict(VerdictStatus.SCORED)
    asked = list[int]()

    def judged(scored: int, num: int = 100, other: PairVerdict = bad) -> list[PairVerdict]:
        asked.clear()

        def submit(one: int) -> Future[PairVerdict]:
            asked.append(one)
            return gathered([], lambda _: good if one == scored else other)

        with Interrupt() as stop:
            asked_of = judging.Judging(SimpleNamespace(), {}, lambda: None)  # pyright: ignore[reportArgumentType]
            return judging.judge_all(range(num), submit, asked_of, interrupt=stop, title="t", unit="u")

    with pytest.raises(DataError, match=r"none of the first 64 judgements can be used, .* mute"):
        judged(64)
    assert len(asked) == 64
    assert judged(63).count(good) == 1 and len(asked) == 100
    assert len(judged(-1, num=64)) == 64  # all there are: whoever asked says what is left
    with pytest.raises(EndpointLostError, match=r"no judgement can be used, and 3 of 3 failed .*: gone"):
        judged(-1, 3, PairVerdict(VerdictStatus.FAILED, reason="gone"))
