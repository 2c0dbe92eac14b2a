"""A server of two data-parallel ranks that share their experts: each computes what transformers does, before a push
and after one, which must have reached both.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from live import Live, prompts
from tiny_model import MAX_MODEL_LEN

from r1mega.buffers import Float32s, Int32s
from r1mega.config.cluster import RolloutLayout
from r1mega.rollout.server import Server
from r1mega.samples import Completion, FinishReason

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

BOUND = 4e-6
"""Four units in the last place of log-probabilities from 8 to 16. Other weights are off by 0.01 and more."""
RANKS = 2


class OnRank(Live):
    """Samples on one rank after the other, each time as a caller who names it."""

    rank = 0

    def sample(self, num_prompts: int = 16, n: int = 16, temperature: float = 1.0) -> list[Completion]:
        found = list[Completion]()
        for i, prompt in enumerate(prompts(num_prompts)):
            body = {
                "model": "policy", "prompt": prompt.token_ids.tolist(), "n": n, "seed": 1000 * i, "max_tokens": 32,
                "temperature": temperature, "logprobs": 0, "return_token_ids": True, "ignore_eos": True,
            }  # fmt: skip
            headers = {"X-data-parallel-rank": str(self.rank)}
            answer = httpx.post(f"{self.server.url}/v1/completions", json=body, headers=headers, timeout=600)
            choices = answer.raise_for_status().json()["choices"]
            found += [_completion(prompt.id, choice) for choice in choices]
        return found


def _completion(prompt_id: str, choice: Any) -> Completion:
    logp = choice["logprobs"]["token_logprobs"]
    return Completion(
        prompt_id, choice["index"], Int32s(choice["token_ids"]), Float32s(logp), "", FinishReason.LENGTH, 0, 0
    )


@pytest.fixture(scope="module")
def live(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OnRank]:
    scratch = tmp_path_factory.mktemp("ranks")
    layout = RolloutLayout(dp=RANKS, expert_parallel=True, kv_cache_gib=0.25, max_num_seqs=64)
    log_file = scratch / "vllm.log"
    with Server(model_dir, layout, max_model_len=MAX_MODEL_LEN, seed=0, log_file=log_file) as server:
        server.wait_ready()
        live = OnRank(server, scratch / "pushed")
        yield live
        live.pusher.close()


@pytest.mark.parametrize("pushed", [False, True])
def test_each_rank_computes_what_transformers_does(live: OnRank, pushed: bool) -> None:
    if pushed:
        live.push(seed=7)
    said = dict[int, list[Int32s]]()
    for live.rank in range(RANKS):
        worst, tokens = live.worst(num_prompts=4)
        print(f"rank {live.rank}: {worst:.2e} over {tokens} tokens")
        assert tokens == 4 * 16 * 32 and worst <= BOUND
        said[live.rank] = [c.token_ids for c in live.sample(num_prompts=2)]
    assert torch.equal(*(torch.tensor([ids.tolist() for ids in said[rank]]) for rank in range(RANKS)))


def test_requests_are_divided_between_the_ranks(live: OnRank) -> None:
    """One that names no rank goes to whichever has less to do."""
    live.ready()
    Live.sample(live, num_prompts=16)
    text = httpx.get(f"{live.server.url}/metrics", timeout=600).text
    done = [line for line in text.splitlines() if line.startswith("vllm:request_success_total") and "length" in line]
    assert len(done) == RANKS and all(float(line.split()[-1]) > 0 for line in done)
