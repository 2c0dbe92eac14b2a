"""The steps of tools/gpu/check.sh in their order: what needs no Transformer Engine first, so that a library that does
not load still leaves minutes of knowledge."""

from dataclasses import dataclass, field

MINUTES = 9
"""All limits together; what unpacking takes is taken off the last steps."""


@dataclass(frozen=True)
class Step:
    name: str
    """tools/gpu/steps/NAME.py, unless `command` says otherwise."""
    limit_s: float
    answers: str
    """The question."""
    arguments: tuple[str, ...] = ()
    program: str = ""
    """Name of the program where it is not the step's."""
    engine: bool = False
    """Whether Transformer Engine is to be found: one that is half there, as before it is compiled, breaks imports."""
    environment: dict[str, str] = field(default_factory=dict)
    command: str = ""
    """A shell's, for steps from outside."""


STEPS = (
    Step("environment", 15, "which machine, driver, versions and commit this is"),
    Step(
        "local_layers", 60, "do Megatron's local layers train, what is put aside come back, checkpoints return",
        ("-k", "off or put_aside"), program="suite",
    ),
    Step("plain_optimizer", 40, "mixtures without the distributed optimizer, frozen MTP layers, norms twice"),
    Step("head", 40, "what the output layer's log-probabilities cost, as they are and in the weight's dtype"),
    Step("shared_memory", 30, "do chunks of weights pass to another process; what stays when all is put aside"),
    Step("te_build", 70, "is Transformer Engine's PyTorch part compiled (it was begun at the start)"),
    Step("te_import", 20, "does the thinned library run: a linear layer and a norm against fp64", engine=True),
    Step(
        "te_layers", 90, "do Transformer Engine's layers equal the local ones, packed rows single documents",
        ("-k", "not off and not put_aside and not fp8"), program="suite", engine=True,
    ),
    Step("fp8", 50, "do the recipes train: the first step's gradients against bf16's, ten losses", engine=True),
    Step(
        "attention", 35, "which kernel attends over a packed row of 34,816, how fast, and is it the same twice",
        engine=True, environment={"NVTE_DEBUG": "1", "NVTE_DEBUG_LEVEL": "2"},
    ),
    Step("bench", 90, "tokens and TFLOP a second: bf16, gradients added in the product, FP8", engine=True),
)  # fmt: skip
