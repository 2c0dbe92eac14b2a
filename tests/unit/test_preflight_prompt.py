"""`check` puts a question to the model as `run` does, and both refuse what would not reach it."""

from pathlib import Path

import pytest
from check_and_run import ROOT, both, stop_at_start, write_model

RL, EVAL = (ROOT / f"configs/tiny/r1_zero/{name}.toml" for name in ("1_rl", "2_eval"))
SETTINGS = {
    RL: ("rollout.num_prompts=4", "questions.0.num=60", "evaluation.questions.0.num=10", "batch.chunk_tokens=1024"),
    EVAL: ("evaluation.questions.0.num=10",),
}
GOOD = "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stop_at_start(monkeypatch, tmp_path / "cache")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its tokenizer has neither bos nor a chat template."""
    return write_model(tmp_path_factory.mktemp("hf"))


REFUSED = {
    "no file": (None, (), "prompt.template: {own}: not there yet"),
    "no Jinja": (GOOD + "{% if %}", (), "prompt.template: {own}, line 2: not a template"),
    "no question": ("Hello", (), "prompt.template: {own} does not write the question"),
    "no system turn": ("{{ messages[-1].content }}", ("prompt.system=Hm.",), "prompt.system: {own} does not write"),
    "no place for one": (GOOD, ("prompt.template=r1_zero", "prompt.system=Hm."), "prompt.system: the template \"r1"),
    "no template of its own": (GOOD, ("prompt.template=chat",), "the tokenizer has no chat template: set promp"),
    "another tokenizer's": (GOOD, ("prompt.template=tiny",), "template tiny needs the special tokens"),
    "an end": (GOOD, ("prompt.prefill=<|endoftext|>",), "prompt.prefill: contains <|endoftext|>, at which"),
    "the old form": (GOOD, ("template=tiny",), 'template: is written otherwise now: [prompt] and below it template'),
}  # fmt: skip


@pytest.mark.parametrize("config", [RL, EVAL])
@pytest.mark.parametrize("case", REFUSED)
def test_a_prompt_that_cannot_be_put_is_refused(case: str, config: Path, folder: Path, tmp_path: Path, capsys):
    template, more, said = REFUSED[case]
    own = tmp_path / "own.jinja"
    if template is not None:
        own.write_text(template)
    overrides = [f"model.path={folder}", *SETTINGS[config], f"prompt.template={own}", *more]
    checked, ran = both(config, overrides, tmp_path / "run", capsys)
    assert said.format(own=own) in checked[1] and said.format(own=own) in ran[1]
    assert (checked[0], ran[0]) == ((2, 2) if template else (0, 2))  # what is not there yet is no fault


@pytest.mark.parametrize("config", [RL, EVAL])
def test_one_that_can_be_put_passes_and_a_change_is_looked_at(config: Path, folder: Path, tmp_path: Path, capsys):
    own = tmp_path / "own.jinja"
    own.write_text(GOOD)
    overrides = [f"model.path={folder}", *SETTINGS[config], f"prompt.template={own}", "prompt.prefill=<think>"]
    assert [code for code, _ in both(config, overrides, tmp_path / "run", capsys)] == [0, 0]
    own.write_text(GOOD.replace("m.content", "m.role"))
    assert [code for code, _ in both(config, overrides, tmp_path / "run", capsys)] == [2, 2]


@pytest.mark.parametrize("config", [RL, EVAL])
def test_a_file_is_looked_at_before_the_model_is_there(config: Path, tmp_path: Path, capsys):
    own = tmp_path / "own.jinja"
    own.write_text("Hello")
    overrides = ["model.path=/nowhere/hf", *SETTINGS[config], f"prompt.template={own}"]
    checked, ran = both(config, overrides, tmp_path / "run", capsys)
    assert checked[0] == ran[0] == 2 and f"{own} does not write the question" in checked[1] == ran[1]
    own.write_text(GOOD)
    checked, ran = both(config, overrides, tmp_path / "run", capsys)
    assert checked[0] == 0 and ran[0] == 2 and "/nowhere/hf is not there yet" in ran[1]
