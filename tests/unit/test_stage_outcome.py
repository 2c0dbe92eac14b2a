"""What an RL run tells and leaves: words while it runs, of how many answers its figures are, its model's template."""

import json
from pathlib import Path
from typing import Any

import pytest
from grpo_run import Run, base

__all__ = ["base"]  # a fixture


@pytest.fixture(scope="module")
def told(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(a run, the lines that it printed)"""
    import contextlib
    import io

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        run = Run(tmp_path_factory.mktemp("told") / "run").start(base, {})
    return run, printed.getvalue().splitlines()


def test_people_hear_what_is_waited_for_and_then_reward_length_and_kl(told: tuple[Run, list[str]]):
    run, lines = told
    first = run.rows()[0]
    said = [line for line in lines if line.startswith("grpo: ")]
    assert said[0].startswith("grpo: evaluation: waiting for the first of ")
    assert said[1] == f"grpo: rollout: waiting for the first of {first['rollout/answers']:.0f} answers"
    assert said[2] == (
        f"grpo: answers: reward {first['reward/total']:.2f}, {first['response_length/mean']:.0f} tokens"
    )
    last = run.rows()[-1]
    end = f"reward {last['reward/total']:.2f}, {last['response_length/mean']:.0f} tokens, KL {last['kl/mean']:.4f}"
    assert said[-1].endswith(f"0 s left  {end}") and said[-1].startswith("grpo: 6/6 steps, ")


def test_figures_say_of_how_many_answers_they_are(told: tuple[Run, list[str]]):
    """Three questions of four answers each, all of which have a verdict and are learnt from."""
    run, _ = told
    for row in run.rows():
        assert row["rollout/answers"] == row["reward/scored"] == row["rollout/learnt_from"] == 12
        assert row["mismatch/answers"] == 12
    summary = json.loads((run.folder / "summary.json").read_text())
    assert summary["mismatch"]["answers"] == 12 * sum("seconds/rollout" in row for row in run.rows())


def test_the_summary_says_what_became_of_the_questions(told: tuple[Run, list[str]], base: Path, tmp_path: Path):
    """Of those that were made, and of a file with one that is held out, one asked twice and one that is too long."""
    from r1mega.data.split import HELD_OUT
    from r1mega.report.summary import cost_lines

    run, _ = told
    assert json.loads((run.folder / "summary.json").read_text())["data"] == {
        "questions, chain_sum: read": 3, "evaluation, chain_sum: read": 2,
    }  # fmt: skip
    made = [f"{i} + 1 =" for i in range(99)]
    theirs = next(text for text in made if text in HELD_OUT)
    mine = [text for text in made if text not in HELD_OUT][:4]
    asked = [*mine, theirs, mine[0], mine[3] + " 1" * 200]
    own = tmp_path / "own.jsonl"
    own.write_text("".join(json.dumps({"task": "chain_sum", "question": q, "truth": "3"}) + "\n" for q in asked))
    table = {"kind": "jsonl", "path": str(own), "verifier_column": "task", "duplicates": "drop", "too_long": "drop"}
    changes = {"questions": [table], "num_steps": 2}
    summary = json.loads((Run(tmp_path / "own").start(base, changes).folder / "summary.json").read_text())
    counted = {"read": 7, "duplicates": 1, "held_out": 1, "too_long": 1}
    told = {f"questions, own: {name}": num for name, num in counted.items()}
    assert summary["data"] == {**told, "evaluation, chain_sum: read": 2}
    shown = cost_lines(summary)
    assert (shown["data: questions, own: read"], shown["data: questions, own: held_out"]) == ("7", "1")


def test_the_model_goes_out_with_the_template_of_its_prompts(told: tuple[Run, list[str]], base: Path):
    from transformers import PreTrainedTokenizerFast

    run, _ = told
    # As the card says: for this model type AutoTokenizer puts a pre-tokenizer of its own in.
    tokenizer: Any = PreTrainedTokenizerFast.from_pretrained(run.folder / "hf")
    assert "`PreTrainedTokenizerFast.from_pretrained`" in (run.folder / "hf/README.md").read_text()
    asked = [a.request.prompt for a in run.engines.asked]
    assert len({prompt.id for prompt in asked}) > 3
    for prompt in asked:
        turn = [{"role": "user", "content": prompt.question}]
        made = tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=True)["input_ids"]
        assert list(made) == prompt.token_ids.tolist()
    template = (run.folder / "hf/chat_template.jinja").read_text()
    assert template == (run.folder / "tokenizer/chat_template.jinja").read_text()
    assert template != (base / "chat_template.jinja").read_text()
