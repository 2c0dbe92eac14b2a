"""First weights of a policy from a model folder of either form: Hugging Face's, or Megatron's checkpoint."""

from pathlib import Path

from r1mega.errors import CheckpointError
from r1mega.families.registry import model_of
from r1mega.families.spec import SCORE_HEAD, Kind, ModelSpec
from r1mega.formats.manifest import MANIFEST, read_model_fields
from r1mega.formats.reader import CheckpointReader
from r1mega.trainer.checkpoint.slices import find_slices
from r1mega.trainer.policy import Policy
from r1mega.weights import hf_io


def load_weights(policy: Policy, folder: Path) -> None:
    """Fill a policy's weights from a folder of either form, whatever its layout; the optimiser keeps its moments.

    A Megatron folder may be a converted model or a training checkpoint, of which the weights alone are taken; a model
    of scores begins on a language model as with `hf_io.load_into`. Every rank calls this.

    Raises:
        WeightMappingError: as `hf_io.load_into`.
        CheckpointError: a Megatron folder that is torn or of a model of other shapes.
    """
    if not (folder / ".metadata").is_file():
        hf_io.load_into(policy, folder)
        return
    found = model_of(read_model_fields(folder), folder / MANIFEST)
    stored, wanted = _shapes(found), _shapes(policy.spec)
    begins = policy.spec.head == "score" and found.head == "lm"
    if begins:  # what neither takes of the other is no difference
        stored = {name: shape for name, shape in stored.items() if name in wanted}
        del wanted[SCORE_HEAD]
        if policy.mesh.first:
            hf_io.say_left_out(folder, found, policy.spec)
    if stored != wanted:
        # Looked at here because a vocabulary of another size would pass for one that is padded otherwise.
        differ = sorted(n for n in stored.keys() | wanted.keys() if stored.get(n) != wanted.get(n))
        raise CheckpointError(f"{folder}: belongs to another model; {len(differ)} tensors differ, first {differ[0]}")
    boxes = find_slices(policy).weights(policy)
    CheckpointReader(folder).fill([box for box in boxes if not (begins and box.key == SCORE_HEAD)])
    policy.weights_changed()


def _shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    return {row.megatron: row.shape for row in spec.tensors() if row.kind is not Kind.COPY}
