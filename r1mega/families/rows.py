"""Rows that the tables of several families have in common.

In all signatures `m` and `n` begin the Megatron and the Hugging Face names.
"""

from collections.abc import Iterator

from r1mega.families.spec import Kind, ModelSpec, Row, Shape, Shard


def one(m: str, n: str, shape: Shape, shard: Shard = Shard.REPLICATED, kind: Kind = Kind.DIRECT) -> Row:
    """A weight that is one tensor on both sides."""
    return Row(m + ".weight", (n + ".weight",), (shape,), kind, shard)


def embedding(spec: ModelSpec, *, also: tuple[str, ...] = ()) -> Row:
    """The embedding; `also`: names under which a folder may repeat it."""
    name, shape = "model.embed_tokens.weight", (spec.vocab_size, spec.hidden_size)
    return Row("embedding.word_embeddings.weight", (name,), (shape,), Kind.DIRECT, Shard.VOCAB, also=also)


def head(spec: ModelSpec, n: str = "lm_head", kind: Kind = Kind.DIRECT) -> Row:
    """The output head under the name `n`; with `Kind.COPY` it repeats what the model predicts with."""
    m = "embedding.word_embeddings" if spec.tied else "output_layer"
    return one(m, n, (spec.vocab_size, spec.hidden_size), Shard.VOCAB, kind)


def gated_mlp(m: str, n: str, hidden: int, ffn: int, *, expert: bool = False) -> Iterator[Row]:
    """A gated MLP; `expert`: one of a mixture."""
    rows, columns = (Shard.EXPERT_ROWS, Shard.EXPERT_COLUMNS) if expert else (Shard.ROWS, Shard.COLUMNS)
    names = (n + "gate_proj.weight", n + "up_proj.weight")
    yield Row(m + "linear_fc1.weight", names, ((ffn, hidden), (ffn, hidden)), Kind.GATED, rows)
    yield one(m + "linear_fc2", n + "down_proj", (hidden, ffn), columns)
