"""A reward model on the trainer's ranks: weights alone, which lie on the device while it scores and on the host else.

It has no gradients, no optimiser and no data-parallel wrapper, so its weights once are all the memory that it takes:
on a GPU's device while it scores (and pinned on the host always), on a CPU where they are. Its layout is the
trainer's, with its layers in equal parts (`layout.placement.layout_for`).
"""

import itertools
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from torch import Tensor

from r1mega.config.training import Batch
from r1mega.errors import ConfigError, DataError
from r1mega.families.registry import read_model
from r1mega.families.spec import ModelSpec
from r1mega.formats.hf_folder import HFFolder
from r1mega.layout.laws import check_layout
from r1mega.layout.placement import layout_for
from r1mega.samples import Document
from r1mega.trainer import forward
from r1mega.trainer.batch import by_document, check_kind, form_of, in_groups_of, micro_batches
from r1mega.trainer.mesh import Mesh
from r1mega.trainer.network.build import build_networks
from r1mega.trainer.network.filling import fill
from r1mega.trainer.network.layer_spec import choose_layers
from r1mega.trainer.network.names import by_whole_model_names, own_tensors
from r1mega.trainer.network.thd import padded
from r1mega.trainer.offload import Loan


def read_reward_model(folder: Path) -> ModelSpec:
    """The model of a reward model's folder.

    Raises:
        ConfigError: as `read_model`; or it is a language model.
    """
    spec = read_model(folder)
    if spec.head == "lm":
        raise ConfigError(
            f"{folder}: a language model ({spec.hf['architectures'][0]}), which gives no scores; give the folder of "
            "a reward model: hf of a run with stage = 'reward_model', or a sequence classification of one label"
        )
    return spec


class RewardModel:
    """A `rewards.reward.Scorer`: one score for each text, read at its last token. Every rank makes one and calls it.

    model = RewardModel(Path("runs/helpful/hf"), mesh, chunk_tokens=16_384, chunks_per_micro_batch=1)
    scores = model.score([Document.of_texts([token_ids])])
    """

    def __init__(self, folder: Path, mesh: Mesh, chunk_tokens: int, chunks_per_micro_batch: int = 1) -> None:
        """
        Args:
            folder: of Hugging Face form, as a reward-model stage exports it.
            chunk_tokens, chunks_per_micro_batch: as in `config.training.Batch`: what is computed at once, never what
                comes of it.

        Raises:
            ConfigError: a language model, or one that the trainer's layout does not hold.
            WeightMappingError: as `weights.hf_io.load_into`.
        """
        self.spec = spec = read_reward_model(folder)
        self._mesh = mesh
        self._batch = Batch(chunk_tokens=chunk_tokens, chunks_per_micro_batch=chunks_per_micro_batch)
        self._layout = layout_for(spec, mesh.layout)
        try:
            check_layout(spec, self._layout, self._batch)
        except ConfigError as error:
            raise ConfigError(f"reward model {folder}: {error}") from error
        layers = choose_layers(mesh.device.type, self._layout)
        self.form = form_of(mesh, packed=layers == "transformer_engine")
        """How micro-batches are laid out."""
        self.networks = build_networks(spec, self._layout, layers, mesh.device)
        for network in self.networks:
            network.requires_grad_(False)
        files = HFFolder(folder, spec)
        fill(files.table, files.tensor, self.state(), files.release)
        # On a CPU the device is the host.
        self._loan = None if mesh.device.type == "cpu" else Loan(self._tensors())

    def state(self) -> dict[str, Tensor]:
        """This rank's weights and buffers, as `Policy.state`; on a GPU empty but while it scores."""
        return {n: t for x in self.networks for n, t in by_whole_model_names(x, own_tensors(x)).items()}

    def _tensors(self) -> list[Tensor]:
        of_each = (itertools.chain(network.parameters(), network.buffers()) for network in self.networks)
        return [tensor for tensors in of_each for tensor in tensors]

    def score(self, documents: Sequence[Document]) -> list[float]:
        """One score for each document of this data-parallel rank, which may have none where others have some.

        A collective: every rank calls it, and the ranks of one copy of the model give and get the same. No state
        changes.

        Args:
            documents: of one text each (`Document.of_texts`), of any length: where one is longer than a chunk, all
                chunks of this call are so many times as long, and as many fewer at once.

        Raises:
            DataError: another kind of document.
        """
        check_kind(documents, self.spec)
        for i, document in enumerate(documents):
            if document.num_targets != 1:
                raise DataError(f"document {i}: {document.num_targets} texts; a score is asked of one text at a time")
        made = micro_batches(
            documents, self._batch_for(documents), mtp_depths=0, agreed=self._mesh.max_over_data, form=self.form,
            multiple=in_groups_of(self._layout),
        )  # fmt: skip
        batches = [batch.to(self._mesh.device) for batch in made]
        with self._loan.here() if self._loan else nullcontext(), self._mesh.waiting("the other ranks to score"):
            found = forward.score(self.networks, self._mesh, batches, temperature=1.0)
        return [float(value) for (value,) in by_document(documents, batches, found)]

    def _batch_for(self, documents: Sequence[Document]) -> Batch:
        """Chunks that hold the longest document of any rank."""
        batch = self._batch
        longest = max((padded(len(d.token_ids), self.form.multiple) for d in documents), default=0)
        times = -(-max(self._mesh.max_over_data(longest), 1) // batch.chunk_tokens)
        if times == 1:
            return batch
        at_once = max(batch.chunks_per_micro_batch // times, 1)
        return batch.model_copy(
            update={"chunk_tokens": times * batch.chunk_tokens, "chunks_per_micro_batch": at_once}
        )
