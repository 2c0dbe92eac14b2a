"""What a rollout's tokens cost its first rank: memory from the arrival of answers to samples encoded for the ranks.

A request's JSON body is parsed and read (`rollout.completions.Reader`) as often as the rollout has prompts, 32 of its
requests go through the journal, all answers become samples (`algos`), which are divided into mini-batches and encoded
for the data-parallel ranks (`trainer.scatter.encode`). `buffers` is the code as it is; `tuples`, the baseline, keeps
ids and log-probabilities as tuples of Python numbers and encodes them from lists, in float64 and for all ranks
before the first is sent, as the code once did. Each runs in a process of its own. Text is 4 characters a token. CPU
time is of the process, so a busy machine hardly changes it.
"""

import argparse
import dataclasses
import gc
import io
import json
import multiprocessing
import random
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import harness
import numpy as np

from r1mega.algos.advantage import samples_from_groups
from r1mega.algos.grpo import weighted
from r1mega.buffers import Int32s
from r1mega.rollout import completions, journal
from r1mega.rollout.engine import Request, SamplingParams
from r1mega.rollout.segment import Key
from r1mega.runtime.files import write_json
from r1mega.samples import Completion, Group, Prompt, Sample, Verdict, VerdictStatus

VOCAB_SIZE, END = 129280, 1
NUM_JOURNALLED = 32
NUM_MINIBATCHES, NUM_SHARES = 16, 8


class Text:
    """In place of a tokenizer: 4 characters a token."""

    def decode(self, ids: Sequence[int], **_: Any) -> str:
        return "word" * len(ids)


def body(n: int, length: int) -> bytes:
    """What a server answers to a request with n answers, all of a length."""
    rng = random.Random(0)

    def choice(index: int) -> dict[str, Any]:
        ids = [*(rng.randrange(300, VOCAB_SIZE) for _ in range(length - 1)), END]
        logp = np.array([-rng.expovariate(2) for _ in ids], np.float32).tolist()
        names = [f"token_id:{i}" for i in ids]
        logprobs = {"text_offset": list(range(0, 4 * length, 4)), "token_logprobs": logp, "tokens": names}
        logprobs["top_logprobs"] = [{name: x} for name, x in zip(names, logp, strict=True)]
        return {
            "index": index,
            "text": "word" * length,
            "logprobs": logprobs,
            "finish_reason": "stop",
            "token_ids": ids,
        }

    return json.dumps({"choices": [choice(i) for i in range(n)]}).encode()


def old_answer(answer: Completion) -> Any:
    return dataclasses.replace(answer, token_ids=tuple(answer.token_ids), logp=tuple(answer.logp))  # type: ignore[arg-type]


def old_encode(samples: Sequence[Sample]) -> bytes:
    """Of the arrays those that have an entry a token."""
    columns = {"prompt_ids": np.int32, "completion_ids": np.int32, "behaviour_logp": np.float64}
    buffer = io.BytesIO()
    arrays: Any = {n: np.array([x for s in samples for x in getattr(s, n)], kind) for n, kind in columns.items()}
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def rollout(variant: str, num_prompts: int, n: int, length: int, report: Callable[[dict[str, Any]], None]) -> None:
    """One rollout; reports bytes and seconds."""
    from r1mega.trainer.scatter import encode

    response, cpu = body(n, length), defaultdict[str, float](float)
    params = SamplingParams(temperature=1.0, max_new_tokens=length)
    job = completions.Job(params, 0, (END,))
    reader: Any = completions.Reader(Text(), VOCAB_SIZE)  # type: ignore[arg-type]
    gc.collect()

    @contextmanager
    def timed(part: str) -> Iterator[None]:
        start = time.process_time()
        yield
        cpu[part] += time.process_time() - start

    def run() -> None:
        groups: list[Group] = []
        with tempfile.TemporaryDirectory() as folder, journal.Journal(Path(folder)) as log:
            for i in range(num_prompts):
                prompt = Prompt(str(i), "task", "question", "truth", Int32s(range(i, i + 100)))
                request = Request(prompt, n, n * i)
                with timed("json"):
                    parsed = json.loads(response)
                with timed("read"):
                    answers = tuple(reader.completion(i, c, request, job) for i, c in enumerate(parsed["choices"]))
                if i < NUM_JOURNALLED:
                    with timed("journal"):
                        log.add(Key.of(request, params, version=0, policy="p"), answers)
                if variant == "tuples":
                    answers = tuple(map(old_answer, answers))
                verdicts = tuple(Verdict(VerdictStatus.SCORED, float(k % 2)) for k in range(n))
                groups.append(Group(prompt, answers, verdicts))
        del parsed, answers
        held["answers"] = harness.memory_bytes("VmRSS") - before
        samples = samples_from_groups(groups, std="population", constant_groups="keep")
        parts = [
            weighted(samples[i::NUM_MINIBATCHES], "token_mean", max_length=length) for i in range(NUM_MINIBATCHES)
        ]
        shares = [[part[i::NUM_SHARES] for part in parts] for i in range(NUM_SHARES)]
        with timed("encode"):
            if variant == "tuples":
                held["encoded"] = sum(map(len, [old_encode([s for part in share for s in part]) for share in shares]))
            else:
                held["encoded"] = sum(len(encode(share)) for share in shares)

    held: dict[str, int] = {}
    before = harness.memory_bytes("VmRSS")
    peak = harness.peak_growth_bytes(run)
    tokens = num_prompts * n * length
    of = {"json": tokens, "read": tokens, "journal": min(NUM_JOURNALLED, num_prompts) * n * length, "encode": tokens}
    report(
        {
            "peak_gib": round(peak / 2**30, 3),
            "answers_gib": round(held["answers"] / 2**30, 3),
            "answers_bytes_per_token": round(held["answers"] / tokens, 1),
            "encoded_bytes_per_token": round(held["encoded"] / tokens, 1),
            "cpu_ns_per_token": {part: round(seconds / of[part] * 1e9) for part, seconds in cpu.items()},
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=512)
    parser.add_argument("--answers", type=int, default=16, help="to each prompt")
    parser.add_argument("--tokens", type=int, default=4000, help="of each answer")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    spawn, found = multiprocessing.get_context("spawn"), {}
    for variant in ("tuples", "buffers"):
        to, at = spawn.Pipe(duplex=False)
        process = spawn.Process(target=rollout, args=(variant, given.prompts, given.answers, given.tokens, at.send))
        process.start()
        found[variant] = to.recv()
        process.join()
        print(variant, json.dumps(found[variant], indent=1), flush=True)
    ratios = {name: round(found["buffers"][name] / found["tuples"][name], 3) for name in ("peak_gib", "answers_gib")}
    root = harness.ROOT / "r1mega"
    names = ("buffers.py", "samples.py", "rollout/completions.py", "rollout/journal.py", "trainer/scatter.py")
    sources = [Path(__file__).resolve(), Path(harness.__file__).resolve(), *(root / name for name in names)]
    about = {"about": " ".join((__doc__ or "").split()), **harness.provenance(["numpy"], sources)}
    about |= {"prompts": given.prompts, "answers_each": given.answers, "tokens_each": given.tokens}
    write_json(given.out, about | {"ratio": ratios, "variants": found})
    print(json.dumps(ratios))


if __name__ == "__main__":
    main()
