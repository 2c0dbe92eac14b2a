"""The accuracy reward of code (report 2.2.2): does the program pass its tests?

    entry = {"language": "python", "tests": [{"stdin": "2 3\\n", "stdout": "5\\n"}]}
    entry = {"language": "python", "tests": [{"call": "add(2, 3)", "expected": 5}]}

The answer is the last block ```python or ```cpp after the thinking. What the program causes makes it wrong, with a
reason; what breaks on our side raises. Report of bug-fixing: an entry with `program`, which the answer mends, by a
whole file or by a block ```diff.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from r1mega.data.question import Question
from r1mega.rewards.programs import answer as answers
from r1mega.rewards.programs.judge import Passed, judge
from r1mega.rewards.programs.patch import PatchFault, apply
from r1mega.rewards.programs.settings import CodeSettings
from r1mega.rewards.programs.task import CodeTask, task_of
from r1mega.rewards.sandbox.sound import fault_of_this_machine
from r1mega.rewards.worker import Limits


def fault_of_machine(questions: Iterable[Question]) -> str | None:
    """Why this machine cannot judge some of these questions, with the remedy; None where it can. It runs a control
    program where there is a question of code."""
    languages = {q.entry.get("language", "python") for q in questions if q.verifier in NAMES}
    return fault_of_this_machine(cpp="cpp" in languages) if languages else None


def fault_of_question(question: Question) -> str | None:
    """Why no answer to a question of code can be judged; None where one can, and of other questions."""
    of = {"code": Code(), "code_fix": Code(mends=True)}.get(question.verifier)
    return None if of is None else of.fault_of(question.entry)


NAMES = ("code", "code_fix")
"""Of its rows in the table of verifiers."""


@dataclass(frozen=True)
class Code:
    """The `Verifier` of programs."""

    needs: ClassVar[Limits] = Limits(cpu_s=300.0, wall_s=3600.0)
    """Of a worker, which waits; programs have limits of their own within."""
    mends: bool = False
    """Whether a question gives a program to mend."""

    def find_answer(self, text: str) -> str | None:
        return answers.find_answer(text)

    def last_answer(self, text: str) -> str:
        """The text itself: its last program, wherever it stands."""
        return text

    def verify(self, answer: str, truth: str, entry: Mapping[str, Any]) -> bool:
        """Whether the program in `answer` passes all tests of `entry`. Raises ValueError and RewardError."""
        passed = self.judge(answer, entry, CodeSettings())
        return passed.passed == passed.total

    def judge(self, answer: str | None, entry: Mapping[str, Any], settings: CodeSettings) -> Passed:
        """What becomes of the tests of `entry`.

        Raises:
            ValueError: the question cannot be judged.
            RewardError: the sandbox fails.
        """
        task = task_of(entry)
        if (fault := self.fault_in(task)) is not None:
            raise ValueError(fault)
        if answer is None:
            return Passed(0, len(task.cases), "no program")
        try:
            source = _source(answer, task)
        except PatchFault as error:
            return Passed(0, len(task.cases), f"the patch cannot be applied: {error}")
        if source is None:
            return Passed(0, len(task.cases), f"no program in {task.language}")
        return judge(source, task, settings)

    def fault_of(self, entry: Mapping[str, Any]) -> str | None:
        """Why no answer to a question can be judged; None where one can."""
        try:
            return self.fault_in(task_of(entry))
        except ValueError as error:
            return str(error)

    def fault_in(self, task: CodeTask) -> str | None:
        return "there is no program to mend" if self.mends and not task.program.strip() else None


def _source(answer: str, task: CodeTask) -> str | None:
    """The program in an answer, or what its patch makes of the given one. Raises PatchFault."""
    languages = (task.language, "diff") if task.program else (task.language,)
    found = answers.program_in(answer, *languages)
    if found is None:
        return None
    language, text = found
    return apply(text, task.program) if language == "diff" else text
