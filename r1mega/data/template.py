"""How a question is written for the model: the tags of the required format and the named templates.

`r1_zero` is Table 1 of the report to the letter, the full stop after the question included. `tiny` is its short
form for a model of a million parameters: the same turn in two tokens, since the format itself comes from
pretraining text. Neither has a place for a system turn. A model's own template, or a file's, is Jinja
(`data.prompt_form`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
ANSWER_OPEN, ANSWER_CLOSE = "<answer>", "</answer>"
END = "<|eos|>"
"""What ends every turn that a tiny tokenizer's model writes."""
TAGS = (THINK_OPEN, THINK_CLOSE, ANSWER_OPEN, ANSWER_CLOSE)


@dataclass(frozen=True)
class Template:
    """Text around a user's and an assistant's turn, and what stands before the first."""

    name: str
    preamble: str
    user_open: str
    user_close: str
    assistant_open: str

    @property
    def chat_template(self) -> str:
        """This template in Jinja, for a Hugging Face tokenizer; writes bos where there is one."""
        return self.chat_template_behind("{{ bos_token or '' }}")

    def chat_template_behind(self, begin: str) -> str:
        """`chat_template` with another beginning, such as none for a tokenizer that never writes its bos."""
        return (
            begin + self.preamble + "{% for message in messages %}"
            "{% if message['role'] == 'user' %}"
            + self.user_open + "{{ message['content'] }}" + self.user_close +
            "{% elif message['role'] == 'assistant' %}"
            + self.assistant_open + "{{ message['content'] }}{{ eos_token or '' }}"
            "{% else %}{{ raise_exception('only user and assistant turns are known') }}{% endif %}{% endfor %}"
            "{% if add_generation_prompt %}" + self.assistant_open + "{% endif %}"
        )  # fmt: skip


R1_ZERO = Template(
    name="r1_zero",
    preamble=(
        "A conversation between User and Assistant. The user asks a question, and the Assistant solves it. "
        "The assistant first thinks about the reasoning process in the mind and then provides the user with the "
        "answer. The reasoning process and answer are enclosed within <think> </think> and <answer> </answer> "
        "tags, respectively, i.e., <think> reasoning process here </think> <answer> answer here </answer>."
    ),
    user_open=" User: ",
    user_close=".",
    assistant_open=" Assistant:",
)

TINY = Template("tiny", preamble="", user_open="<|user|>", user_close="", assistant_open="<|assistant|>")

TEMPLATES = {template.name: template for template in (R1_ZERO, TINY)}


def render_prompt(template: Template, question: str, shown: Sequence[tuple[str, str]] = ()) -> str:
    """One user turn, up to where the model starts to write; no bos token.

    Args:
        shown: questions and answers that stand before it, each as a turn of its own; no end token stands between
            them, since the text is for a server whose tokenizer is not known.
    """
    before = "".join(
        template.user_open + asked + template.user_close + template.assistant_open + said for asked, said in shown
    )
    return template.preamble + before + template.user_open + question + template.user_close + template.assistant_open
