"""Recipe of rejection sampling: answers sampled, and the good ones kept; the stage is `r1mega.stages.rejection`."""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from r1mega.config.cluster import Cluster
from r1mega.config.inputs import Input
from r1mega.config.section import Section
from r1mega.data.question import Domain
from r1mega.data.scope import THOUGHT, Marks
from r1mega.data.settings import AnswerFormat
from r1mega.families.spec import ModelSpec
from r1mega.recipe.answering import Making
from r1mega.recipe.judged_by import JudgedBy
from r1mega.recipe.rewrite import Rewrite
from r1mega.rewards.accuracy import Accuracy
from r1mega.rewards.filters import Filters
from r1mega.rewards.judge import AnswerWords
from r1mega.rewards.programs.settings import CodeSettings


class KeptAnswers(Section):
    """How many answers a question gets, and how many of the good ones are kept."""

    per_question: int = Field(default=4, gt=0)
    """n, the answers to each question (report: "multiple responses")."""
    max_kept: int | None = Field(default=None, gt=0)
    """Rows of a question, at most; which of more good answers are kept is drawn by the seed. Left out: all."""
    marks: Marks = THOUGHT
    """What opens and what closes the thinking."""


class Verify(Section):
    """Which answers are right."""

    format: AnswerFormat | None = None
    """What an answer has to look like, as evaluation.format: r1_zero, r1 or any. Left out: r1_zero, or any where an
    endpoint is sent messages."""
    min_value: float = Field(default=1.0, ge=0, le=1)
    """The least value of a right answer. A rule says 1 or 0 (of programs with `code.counts = "share"`, the share of
    tests passed), a judge the mean of its votes."""
    code: CodeSettings = CodeSettings()
    """Of answers that are programs: what they have to pass, and what they may use."""
    judge: JudgedBy | None = None
    """Who judges answers to questions that no rule can judge (`verifier = "none"`, no truth); the report takes
    DeepSeek-V3, with question, reference answer and answer side by side."""
    words: AnswerWords = AnswerWords()
    """What the judge is told, and how often it is asked."""
    max_characters: int = Field(default=60_000, gt=0)
    """Of what the judge is shown of an answer, its summary; a longer one is unscorable, without asking."""
    unjudged: Literal["refuse", "keep"] = "refuse"
    """Without a judge, what becomes of questions that no rule can judge: the stage refuses them before it starts, or
    keeps their answers unjudged, as the report does with V3's answers to general prompts."""


class Thinking(Section):
    """Of general prompts: which answers are written down without their chain of thought (report 2.3.3)."""

    domains: tuple[Domain, ...] = ()
    """Domains whose simple prompts these are; none named: every answer keeps its thinking."""
    simple_words: int = Field(default=3, gt=0)
    """A prompt of at most so many words is a simple one, such as "hello" (the report's example; the number is
    ours)."""
    empty: str = ""
    """What stands in place of the thinking, marks included, such as "<think>\\n\\n</think>\\n\\n". "": both marks,
    with the white space that the answer itself has around its thinking."""


class Rejection(Making):
    """Rejection sampling (report 2.3.3), and the traces of a cold start (2.3.1): a finished model answers, and what
    is right and can be read becomes conversations to train on."""

    runs = "r1mega.stages.rejection:run"
    script = "rejection_stage"
    checks_data = "r1mega.preflight.questions:check_rejection_questions"
    learns_from = "nothing"
    shows_examples = True

    stage: Literal["rejection"]
    answers: KeptAnswers = KeptAnswers()
    verify: Verify = Verify()
    filters: Filters = Filters()
    thinking: Thinking = Thinking()
    rewrite: Rewrite | None = None
    """How kept answers are made readable; left out: they are written as they were sampled."""

    @property
    def answer_format(self) -> AnswerFormat:
        """`verify.format`, resolved."""
        chat = self.endpoint is not None and self.endpoint.form == "chat"
        return self.verify.format or ("any" if chat else "r1_zero")

    @property
    def rule(self) -> Accuracy:
        """What judges answers by rule."""
        return Accuracy(code=self.verify.code)

    @property
    def serves(self) -> bool:
        return super().serves or any(one.model is not None for one in self.asked_beside().values())

    def faults(self) -> list[str]:
        faults, judge = super().faults() + self.filters.faults(), self.verify.judge
        if judge is not None:
            faults += judge.faults("verify.judge")
        elif self.verify.words != AnswerWords():
            faults.append("verify.words: there is no verify.judge to be told: name one, or take it out")
        if judge is not None and self.verify.unjudged == "keep":
            faults.append(
                'verify.unjudged: with a judge nothing is left unjudged; take out verify.judge or unjudged = "keep"'
            )
        if self.filters.min_tokens > self.sampling.max_new_tokens:
            faults.append(
                f"filters.min_tokens: {self.filters.min_tokens} is more than sampling.max_new_tokens = "
                f"{self.sampling.max_new_tokens}: no answer is so long"
            )
        if self.answers.max_kept is not None and self.answers.max_kept > self.answers.per_question:
            faults.append(
                f"answers.max_kept: {self.answers.max_kept} of answers.per_question = {self.answers.per_question} "
                "answers are never kept: lower it, or leave it out"
            )
        return faults + self._thinking_faults() + self._rewrite_faults()

    def _thinking_faults(self) -> list[str]:
        thinking, (opening, closing), faults = self.thinking, self.answers.marks, list[str]()
        if thinking.empty and (opening not in thinking.empty or closing not in thinking.empty):
            faults.append(f"thinking.empty: has to hold both marks, {opening!r} and {closing!r}")
        known = list(dict.fromkeys(source.domain for source in self.questions))
        if not thinking.domains and thinking != Thinking():
            faults.append(
                "thinking: simple_words and empty have no effect without thinking.domains: name the domains whose "
                f"simple prompts are answered without thinking, of {', '.join(known)}, or take them out"
            )
        return faults + [
            f"thinking.domains: no table of [[questions]] is of {domain!r}: {', '.join(known)}"
            for domain in thinking.domains
            if domain not in known
        ]

    def _rewrite_faults(self) -> list[str]:
        rewrite, judge = self.rewrite, self.verify.judge
        faults = rewrite.faults("rewrite") if rewrite else []
        if rewrite and rewrite.model and judge and judge.model:
            faults.append(
                "rewrite.model: what it writes is judged again, so that this folder and verify.judge.model would be "
                "served at once; give one of the two an endpoint"
            )
        return faults

    def asked_beside(self) -> dict[str, JudgedBy]:
        """Setting -> the models that are asked once the answers are there."""
        asked = {"verify.judge": self.verify.judge, "rewrite": self.rewrite}
        return {setting: one for setting, one in asked.items() if one is not None}

    def inputs(self) -> Sequence[Input]:
        return [*super().inputs(), *(one for name, of in self.asked_beside().items() for one in of.inputs(name))]

    def faults_on(self, machine: Cluster, spec: ModelSpec | None) -> list[str]:
        faults = super().faults_on(machine, spec)
        for name, of in self.asked_beside().items():
            found = of.faults_on(name, self.holds(), machine)
            faults += [fault for fault in found if fault.removeprefix(f"{name}.model: ") not in faults]
        return faults

    def lacks(self) -> Sequence[str]:
        return [*super().lacks(), *(one for name, of in self.asked_beside().items() for one in of.lacks(name))]

    def leaves(self) -> Sequence[str]:
        return ("rows.jsonl", *(self.rewrite.leaves() if self.rewrite else ()))
