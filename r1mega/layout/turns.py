"""Who holds a GPU's memory where trainer and engine share it: the states, what may follow what, and what each takes.

                        engine: absent   asleep       weights        weights and cache
    trainer: everything        alone     learning
    trainer: weights                     exporting    pushing
    trainer: nothing           vacant    waiting      handed over    sampling

Asleep, the engine's processes run and hold nothing of the model; its weights come with the next push. A push is made
in "pushing" alone, answers are drawn in "sampling" alone, and the policy learns in the states of the first line.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from r1mega.layout.engine_memory import EngineMemory
from r1mega.layout.memory import GIB, RankMemory

Stage = Literal["optimizer", "gradients", "weights"]
"""What of a policy can lie on the device or not."""
Holds = Literal["absent", "asleep", "weights", "everything"]
"""What of the model an engine has on the device."""
State = Literal["alone", "learning", "exporting", "pushing", "vacant", "waiting", "handed over", "sampling"]


@dataclass(frozen=True)
class Shares:
    """Who has what in a state."""

    trainer: frozenset[Stage]
    engine: Holds


_ALL: frozenset[Stage] = frozenset(("optimizer", "gradients", "weights"))
_WEIGHTS: frozenset[Stage] = frozenset(("weights",))
_NOTHING: frozenset[Stage] = frozenset()

STATES: Mapping[State, Shares] = {
    "alone": Shares(_ALL, "absent"),
    "learning": Shares(_ALL, "asleep"),
    "exporting": Shares(_WEIGHTS, "asleep"),
    "pushing": Shares(_WEIGHTS, "weights"),
    "vacant": Shares(_NOTHING, "absent"),
    "waiting": Shares(_NOTHING, "asleep"),
    "handed over": Shares(_NOTHING, "weights"),
    "sampling": Shares(_NOTHING, "everything"),
}

MOVES: tuple[tuple[State, State], ...] = (
    # The round of a step.
    ("learning", "exporting"),
    ("exporting", "pushing"),
    ("pushing", "handed over"),
    ("handed over", "sampling"),
    ("sampling", "waiting"),
    ("waiting", "learning"),
    # The engine is started, and started anew, where the trainer has nothing on the device.
    ("alone", "vacant"),
    ("vacant", "sampling"),
    ("learning", "waiting"),
    ("waiting", "vacant"),
    ("sampling", "vacant"),
    ("vacant", "alone"),
    # Weights are pushed to an engine that has just been started.
    ("waiting", "exporting"),
    # Nothing was pushed after all.
    ("exporting", "learning"),
)
"""Each is a change of one side alone, so that what is given up is free before anything is taken."""


def way(begin: State, end: State) -> list[State]:
    """The states after `begin` up to `end`, by the fewest moves that are allowed."""
    reached: dict[State, list[State]] = {begin: []}
    front: list[State] = [begin]
    for state in front:
        for here, after in MOVES:
            if here == state and after not in reached:
                reached[after] = [*reached[state], after]
                front.append(after)
    return reached[end]


RESIDUE_BYTES = 2.5 * GIB
"""What a process keeps of a GPU whatever it has given up: context, NCCL's buffers, libraries' workspaces, graphs. An
assumption, of which tools/gpu/check.sh measures the trainer's part."""


@dataclass(frozen=True)
class SharedMemory:
    """Bytes of a GPU in one state."""

    trainer: float
    engine: float
    residue: float

    @property
    def total(self) -> float:
        return self.trainer + self.engine + self.residue


def shared_memory(rank: RankMemory, engine: EngineMemory) -> dict[State, SharedMemory]:
    """What a GPU holds in each state, before activations.

    Args:
        rank: the trainer's.
        engine: a rank of the engine's on the same GPU. While weights are pushed it needs what `reload` says, and the
            trainer has as many messages under way.
    """
    of_stage = {"optimizer": rank.optimizer, "gradients": rank.gradients, "weights": rank.weights}
    of_engine: dict[Holds, float] = {"absent": 0.0, "asleep": 0.0, "weights": engine.weights}
    of_engine["everything"] = engine.weights + engine.cache
    found: dict[State, SharedMemory] = {}
    for state, held in STATES.items():
        pushes = state == "pushing"
        found[state] = SharedMemory(
            trainer=sum(of_stage[stage] for stage in held.trainer) + (engine.buckets if pushes else 0.0),
            engine=of_engine[held.engine] + (engine.reload if pushes else 0.0),
            residue=RESIDUE_BYTES * (1 if held.engine == "absent" else 2),
        )
    return found


def told(memory: Mapping[State, SharedMemory]) -> list[str]:
    """A line for each state, in the order of `STATES`."""
    return [
        f"{state}: trainer {one.trainer / GIB:,.1f} GiB, engine {one.engine / GIB:,.1f}, contexts and buffers "
        f"{one.residue / GIB:,.1f}, together {one.total / GIB:,.1f}"
        for state, one in memory.items()
    ]
