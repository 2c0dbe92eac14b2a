"""Who answers in a stage that asks a finished model: our own server of a Hugging Face folder, or an endpoint."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from r1mega.buffers import Int32s
from r1mega.config.cluster import Cluster
from r1mega.data.asked_questions import AskedQuestions, Counts
from r1mega.data.few_shot import drawn_shots
from r1mega.data.prompt_form import PromptForm
from r1mega.data.prompts import prompt_of
from r1mega.data.special_tokens import ends, refuse_ends_as_stops
from r1mega.data.template import TEMPLATES, render_prompt
from r1mega.endpoint.client import Client
from r1mega.families.spec import ModelSpec
from r1mega.recipe.answering import QUESTION, Answering, AskedEndpoint
from r1mega.rollout.engine import Engine
from r1mega.rollout.remote import OneByOne, RemoteEngine
from r1mega.rollout.replay import JournalledEngine
from r1mega.runtime import env
from r1mega.runtime.interrupt import Interrupt
from r1mega.runtime.run_dir import RunDir
from r1mega.samples import Prompt

Served = AbstractContextManager[Engine]
Serve = Callable[..., Served]
"""Makes what answers for a folder, as `rollout.served.ServedModel` does."""
MakePrompts = Callable[[PromptForm, ModelSpec], tuple[list[Prompt], Mapping[str, Counts]]]
RESUME = "what was answered is in the journal; continue with --resume"


@dataclass(frozen=True)
class Asked:
    """Who is asked what."""

    prompts: Sequence[Prompt]
    counts: Mapping[str, Counts]
    """What became of the questions of each source, by its label."""
    written: str
    """How a question is put, with {question} in its place."""
    of: dict[str, str]
    """Whose answers these are, for people."""
    start: Callable[..., AbstractContextManager[Any]]
    """Takes an Interrupt and, of a folder, `room`: for how many tokens of prompt and answer the server is laid out
    that is to answer for other folders as well (`ServedModel.turn_to`)."""
    one_by_one: bool
    """Whether each answer is asked for, and journalled, by itself."""
    room: int = 0
    """Tokens of the longest prompt and answer; 0 of an endpoint, which nobody here lays out."""

    def journalled(self, engine: JournalledEngine) -> Engine:
        """What is to be asked, over the journal."""
        return OneByOne(engine) if self.one_by_one else engine


def ask_folder(
    config: Answering, cluster: Cluster, run_dir: RunDir, serve: Serve | None, make_prompts: MakePrompts
) -> Asked:
    """A Hugging Face folder, served here. Its tokenizer and our server are imported for it alone.

    Args:
        serve: None: `rollout.served.ServedModel`.
        make_prompts: the stage's, with what became of its questions.

    Raises:
        ConfigError, DataError: settings, questions and tokenizer do not fit each other.
    """
    from r1mega.data.tokenizer import load_tokenizer
    from r1mega.families.registry import check_tokenizer, read_language_model
    from r1mega.rollout.command import places_of
    from r1mega.rollout.served import ServedModel
    from r1mega.weights.folder import GiveFolder

    path = config.model.path
    assert path is not None, "the recipe demands it"
    tokenizer = load_tokenizer(path)
    spec = read_language_model(path)
    check_tokenizer(spec, tokenizer, path)
    refuse_ends_as_stops(config.sampling.stop, tokenizer, ends(tokenizer))  # before the engine starts
    form = PromptForm(config.prompt, tokenizer, drawn_shots(config.prompt, config.seed))
    prompts, counts = make_prompts(form, spec)
    own_room = max(len(p.token_ids) for p in prompts) + config.sampling.max_new_tokens

    def start(interrupt: Interrupt, room: int = 0) -> Served:
        return (serve or ServedModel)(
            path,
            cluster.rollout,
            max_model_len=room or own_room,
            seed=config.seed,
            log_file=run_dir.logs / "vllm.log",
            interrupt=interrupt,
            give=GiveFolder(
                address=cluster.address,
                transport=cluster.transport,
                verify=cluster.weights.verify,
                breakable=interrupt.at_once,
            ),
            places=places_of(cluster, trains=False),
        )

    of = {"model": str(path)}
    return Asked(prompts, counts, form.write(QUESTION), of, start, one_by_one=False, room=own_room)


def ask_endpoint(config: Answering, endpoint: AskedEndpoint, asked: AskedQuestions) -> Asked:
    """A server that is there already: it has the tokenizer, and counts the tokens."""
    chat, prefill = endpoint.form == "chat", config.prompt.prefill  # the recipe refuses one where the server writes

    shots = drawn_shots(config.prompt, config.seed)

    def put(question: str) -> str:
        if not chat:
            shown = [(shot.question, shot.response) for shot in shots]
            return render_prompt(TEMPLATES[str(config.prompt.template)], question, shown) + prefill
        turns = [("system", endpoint.system)] if endpoint.system else []
        for shot in shots:
            turns += [("user", endpoint.user.replace(QUESTION, shot.question)), ("assistant", shot.response)]
        turns.append(("user", endpoint.user.replace(QUESTION, question)))
        return json.dumps([{"role": role, "content": said} for role, said in turns], ensure_ascii=False)

    prompts = [dataclasses.replace(prompt_of(q, Int32s(), prefill), sent=put(q.text)) for q in asked.questions]
    client = Client(endpoint, env.secret(endpoint.api_key_env) if endpoint.api_key_env else None)
    of = {"endpoint": endpoint.url, "model": endpoint.model}
    return Asked(
        prompts,
        asked.counts,
        put(QUESTION),
        of,
        lambda stop: RemoteEngine(client, endpoint.form, stop),
        one_by_one=True,
    )
