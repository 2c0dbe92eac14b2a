"""How a question is put: templates are rendered as transformers renders them, or refused with the reason."""

import logging
from pathlib import Path
from typing import Any, get_args

import pytest
from prompt_templates import BOS, QWEN3, R1, SMOLLM2, tokenizer_with

from r1mega.config.load import validate
from r1mega.config.section import FromShell
from r1mega.data.prompt_form import PromptForm, look_at
from r1mega.data.prompts import prompts
from r1mega.data.question import Question
from r1mega.data.settings import PromptSettings, TemplateName
from r1mega.data.template import TEMPLATES
from r1mega.errors import ConfigError, DataError
from r1mega.recipe.load import load_recipe

SHIPPED = Path(__file__).parents[2] / "configs/chat_templates"
ASKED = [Question("a", "math", "What is 2 + 2?", "4"), Question("b", "math", "{{ 5 }} - 2 <ü> 😀", "3")]


def put(tmp_path: Path, chat_template: str | None, *, bos: bool = True, **settings: Any) -> PromptForm:
    """A form of the model's own template."""
    tokenizer = tokenizer_with(chat_template, tmp_path / "model", bos=bos)
    return PromptForm(PromptSettings.model_validate({"template": "chat", **settings}), tokenizer)


def written(form: PromptForm, number: int = 0) -> str:
    return form.tokenizer.decode(prompts(ASKED, form)[number].token_ids.tolist())


# ---- what is written -------------------------------------------------------------------------------------------


def test_the_models_own_template_is_written_whole_with_one_bos(tmp_path: Path):
    form = put(tmp_path, (SHIPPED / "llama.jinja").read_text(), system="Be brief.", prefill="<think>\n")
    assert written(form) == (
        f"{BOS}<|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|><|start_header_id|>user"
        "<|end_header_id|>\n\nWhat is 2 + 2?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n<think>\n"
    )
    assert [p.prefill for p in prompts(ASKED, form)] == ["<think>\n"] * 2
    assert "<|end_header_id|>\n\n{{ 5 }} - 2 <ü> 😀<|eot_id|>" in written(form, 1)


def test_without_a_system_turn_the_templates_own_stays(tmp_path: Path):
    form = put(tmp_path, SMOLLM2, bos=False)
    assert written(form).startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by")
    form = put(tmp_path / "other", SMOLLM2, bos=False, system='Say "4" \\ {{ x }} %}\nonly. 😀')
    assert written(form) == (
        '<|im_start|>system\nSay "4" \\ {{ x }} %}\nonly. 😀<|im_end|>\n<|im_start|>user\nWhat is 2 + 2?<|im_end|>\n'
        "<|im_start|>assistant\n"
    )


def test_a_named_template_takes_a_prefill(tmp_path: Path):
    form = put(tmp_path, None, template="r1_zero", prefill="{{ <think>")
    assert written(form).startswith(BOS + "A conversation between User and Assistant.")
    assert written(form).endswith("answer here </answer>. User: What is 2 + 2?. Assistant:{{ <think>")
    assert form.prefill == "{{ <think>"
    assert written(put(tmp_path / "tiny", None, template="tiny")) == f"{BOS}<|user|>What is 2 + 2?<|assistant|>"


AWKWARD = [
    "\n{{ messages[-1].content }}\n\n",
    "  {% if true %}\n  {{ messages[-1].content }}\n  {% endif %}\n",
    "{%- for m in messages if m.role == 'user' -%}\n {{ m.content }} \n{%- endfor %}\n  ",
    "\r\n{{ messages[-1].content }}\r\n",
    "{# a note #}\n{{ messages[-1].content }}   ",
]


@pytest.mark.parametrize("template", AWKWARD)
def test_what_is_added_leaves_a_templates_white_space_alone(template: str, tmp_path: Path):
    """The oracle is the template by itself, through transformers."""
    template = template.replace("{{ m", "{{ (messages[0].content if messages[1] else '') ~ '|' ~ m", 1)
    tokenizer = tokenizer_with(template, tmp_path / "model")
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": ASKED[0].text}]
    bare = {n: tokenizer.apply_chat_template(turns[n:], tokenize=False, add_generation_prompt=True) for n in (0, 1)}
    for number, system in ((0, {"system": "Be brief."}), (1, {})):
        form = PromptForm(PromptSettings.model_validate({"template": "chat", "prefill": "So:", **system}), tokenizer)
        assert form.render([ASKED[0].text]) == [bare[number] + "So:"]


def test_a_template_may_trim_the_question(tmp_path: Path):
    form = put(tmp_path, "{% for m in messages %}Q: {{ m.content | trim }}{% endfor %} A:")
    (prompt,) = prompts([Question("a", "math", " 1 + 1 =\n", "2")], form)
    assert form.tokenizer.decode(prompt.token_ids.tolist()) == "Q: 1 + 1 = A:"


# ---- what a template writes of the answer ------------------------------------------------------------------------

ASKS = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: "
OPENED = {
    "deepseek_r1.jinja": ((SHIPPED / "deepseek_r1.jinja").read_text(), ""),
    "llama.jinja": ((SHIPPED / "llama.jinja").read_text(), ""),
    "qwen.jinja": ((SHIPPED / "qwen.jinja").read_text(), ""),
    "SmolLM2's": (SMOLLM2, ""),
    "DeepSeek-R1's": (R1, "<think>\n"),
    "Qwen3's": (QWEN3, ""),
    "Qwen3's, told not to think": (QWEN3.replace("enable_thinking is defined", "true").replace(
        "enable_thinking is false", "true"), "<think>\n\n</think>\n\n"),
    "tags in the generation prompt": (ASKS + "Think in <think> </think>, answer in <answer> </answer>.\n{% endif %}",
                                      ""),
    "a thought before every turn": (ASKS.replace("{{ m.content", "<think>{{ m.content") + "<think>{% endif %}",
                                    "<think>"),
    "tags in what is asked for": (ASKS.replace("{{ m.content", "Use <think> and </think>. {{ m.content")
                                  + "{% endif %}", ""),
    "words behind the tag": (ASKS + "<think>Well,{% endif %}", "<think>Well,"),
    "a place that differs": (ASKS.replace("{{ m.role }}: ", "{{ m.role }}\n") + "<think>\n{% endif %}", "<think>\n"),
    "one turn alone": ("{% if messages[1] %}{{ raise_exception('one turn') }}{% endif %}{{ messages[0].content }}"
                       " <think>", "<think>"),
    "no header": ("{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %} Go:{% endif %}",
                  ""),
}  # fmt: skip


@pytest.mark.parametrize("case", OPENED)
def test_a_thought_that_the_template_opens_is_judged_with_the_answer(case: str, tmp_path: Path):
    template, opened = OPENED[case]
    form = put(tmp_path, template)
    assert {p.prefill for p in prompts(ASKED, form)} == {opened}
    assert written(form).endswith(opened)


def test_a_prefill_comes_behind_what_the_template_opens(tmp_path: Path):
    form = put(tmp_path, R1, prefill="First,")
    assert form.prefill == "<think>\nFirst," and written(form).endswith("<｜Assistant｜><think>\nFirst,")
    with pytest.raises(DataError, match=r"prompt.prefill: .*begins every answer with '<think>\\n' itself"):
        put(tmp_path / "two", R1, prefill="<think>\n")


# ---- what is refused ---------------------------------------------------------------------------------------------

USER_ALONE = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + USER_ALONE
REFUSED: dict[str, tuple[str | None, dict[str, str], str]] = {
    "no template": (None, {}, "the tokenizer has no chat template: set prompt.template to a Jinja file"),
    "no Jinja": ("a\n{% if %}", {}, "prompt.template: the tokenizer's chat template, line 2: not a template"),
    "drops the question": ("Hello", {}, "prompt.template: the tokenizer's chat template does not write the question"),
    "twice": (USER_ALONE * 2, {}, "writes the question 2 times"),
    "refuses": ("{{ raise_exception('only tools') }}", {}, "refuses what it is given: TemplateError: only tools"),
    "drops the system turn": (USER_ALONE, {"system": "Hm."}, "prompt.system: the tokenizer's chat template does not"),
    "refuses a system turn": (NO_SYSTEM, {"system": "Hm."}, "prompt.system: .*no system; leave it out"),
    "shouts": (
        SMOLLM2.replace("message['content']", "message['content'].upper()"),
        {},
        "does not write the question",
    ),
    "an end in the prefill": (SMOLLM2, {"prefill": "<|im_end|>"}, r"prompt.prefill: contains <\|im_end\|>, at which"),
    "a token in the system turn": (SMOLLM2, {"system": "a<|im_start|>"}, "prompt.system: contains the special token"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_put_is_refused_with_the_reason(case: str, tmp_path: Path):
    template, settings, said = REFUSED[case]
    with pytest.raises(DataError, match=said):
        put(tmp_path, template, bos=True, **settings)


def test_a_template_that_looks_into_questions_is_refused_at_the_question(tmp_path: Path):
    form = put(tmp_path, "{% for m in messages %}{{ m.content | replace('ü', 'ue') }}{% endfor %}")
    with pytest.raises(DataError, match=r"own.jsonl, line b: .*does not write it word for word"):
        prompts(ASKED, form, "own.jsonl, line {}".format)


def test_without_the_tokenizer_a_file_is_looked_at_as_far_as_it_goes(tmp_path: Path):
    file = tmp_path / "own.jinja"
    settings = PromptSettings(template=file)
    for text, said in (("a\n{{ x", "own.jinja, line 2: not a template"), ("Hi", "own.jinja does not write the")):
        file.write_text(text)
        with pytest.raises(DataError, match=said):
            look_at(settings)
    for text in ("{{ bos_token + messages[0].content }}", "{{ raise_exception('x') }}"):
        file.write_text(text)
        look_at(settings)
    look_at(PromptSettings(template="chat"))


def test_what_may_be_a_mistake_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    file = tmp_path / "own.jinja"
    file.write_text("{{ strftime_now('%Y') }}<|human|>{{ messages[0].content }}")
    tokenizer = tokenizer_with(None, tmp_path / "model")
    with caplog.at_level(logging.WARNING):
        PromptForm(PromptSettings(template=file), tokenizer)
    said = "\n".join(caplog.messages)
    assert f"{file} writes ['<|human|>'], which the tokenizer has not" in said
    assert f"does not begin with {BOS}, with which the tokenizer begins a text" in said
    assert "writes the day" in said
    caplog.clear()
    file.write_text("{{ bos_token }}<|user|>{{ messages[0].content }}")
    PromptForm(PromptSettings(template=file), tokenizer)
    assert caplog.messages == []


# ---- settings ----------------------------------------------------------------------------------------------------


def settings_of(folder: Path, **table: Any) -> PromptSettings:
    return validate(PromptSettings, table, folder / "1_rl.toml")


def test_a_path_counts_from_the_configs_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert settings_of(tmp_path, template="own.jinja").file == tmp_path / "own.jinja"
    monkeypatch.chdir("/tmp")
    assert settings_of(tmp_path, template=FromShell("own.jinja")).file == Path("/tmp/own.jinja").resolve()
    named = settings_of(tmp_path, template=FromShell("r1_zero"))
    assert named.file is None and named.template == "r1_zero" and type(named.template) is str


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"template": "r1_zeroo"}, r"template: there is no template of this name \(did you mean 'r1_zero'\?\)"),
        ({"template": 3}, "template: should be the name of a template or the path of a Jinja file"),
        ({"sytem": "x"}, r"sytem: unknown key \(did you mean 'system'\?\)"),
    ],
)
def test_settings_that_are_none_are_refused(table: dict[str, Any], said: str, tmp_path: Path):
    with pytest.raises(ConfigError, match=said):
        settings_of(tmp_path, **table)


def test_templates_are_those_there_are():
    assert set(get_args(TemplateName)) == {*TEMPLATES, "chat"}


def test_the_old_form_is_refused_with_the_new_one_written_out(tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")

    def fault(*overrides: str) -> str:
        with pytest.raises(ConfigError) as raised:
            load_recipe(SHIPPED.parent / "tiny/r1_zero/1_rl.toml", [f"model.path={tmp_path}", *overrides])
        return str(raised.value)

    said = fault("template=r1_zero")
    assert 'template: is written otherwise now: [prompt] and below it template = "r1_zero"' in said
    assert "--set, prompt.template=r1_zero" in said and "unknown key" not in said
    said = fault("prompt.template=own.jinja", "prompt.sytem=x", "num_steps=0")
    assert "prompt.sytem: unknown key" in said and "num_steps" in said
    assert "prompt.system: the template" in fault("prompt.system=Hm.", "prompt.template=tiny")


def test_a_system_turn_needs_a_place():
    (fault,) = PromptSettings(template="r1_zero", system="Be brief.").faults()
    assert fault.startswith('prompt.system: the template "r1_zero" has no place for a system turn')
    assert PromptSettings(template="chat", system="Be brief.").faults() == []
