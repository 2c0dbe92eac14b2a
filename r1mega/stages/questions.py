"""What an RL run asks: training questions, made or read, and held-out ones, which no run trains on."""

from dataclasses import dataclass

from r1mega.config.schema import GRPO
from r1mega.data.prompts import held_out_prompts, prompts, read_jsonl, train_prompts
from r1mega.data.template import template
from r1mega.data.tokenizer import load_tokenizer
from r1mega.errors import DataError
from r1mega.families.registry import check_lengths, check_tokenizer, read_model
from r1mega.runtime import files
from r1mega.runtime.run_dir import RunDir
from r1mega.samples import Prompt


@dataclass(frozen=True)
class Questions:
    """What a run asks."""

    train: list[Prompt]
    held_out: list[Prompt]

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt."""
        return max(len(p.token_ids) for p in [*self.train, *self.held_out])


def make_questions(config: GRPO, run_dir: RunDir) -> Questions:
    """The run's questions, written down and checked.

    Raises:
        DataError: a training question is held out, or the tokenizer does not fit the model.
        ConfigError: answers to them may be longer than the model or a chunk holds.
    """
    assert config.model.path is not None
    tokenizer = load_tokenizer(config.model.path)
    put = template(config.template)
    if config.questions is not None:
        train = prompts(read_jsonl(config.questions), tokenizer, put)
    else:
        train = train_prompts(config.tasks, config.num_questions, config.seed, tokenizer, put)
    asked = Questions(train, held_out_prompts(config.tasks, config.evaluation, tokenizer, put))
    if common := {p.question for p in asked.train} & {p.question for p in asked.held_out}:
        raise DataError(f"{len(common)} of {config.questions}'s questions are held out for evaluation: take them out")
    for name, some in (("trained_on", asked.train), ("held_out", asked.held_out)):
        files.write_jsonl(run_dir.path / f"{name}.jsonl", ({"question": p.question} for p in some))
    spec = read_model(config.model.path)
    check_tokenizer(spec, tokenizer, config.model.path)
    check_lengths(asked.longest + config.sampling.max_new_tokens, spec, config.batch)
    return asked
