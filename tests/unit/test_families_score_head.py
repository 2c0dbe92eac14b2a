"""Score heads: any family's model with one, its config.json there and back, and what is refused by name."""

import json
import math
from pathlib import Path

import pytest
from published import PARAMETERS, QWEN25_05B
from trainer_data import TINY

from r1mega.config.cluster import Cluster
from r1mega.config.model import Model
from r1mega.errors import ConfigError, WeightMappingError
from r1mega.families.registry import FAMILIES, read_language_model, read_model, read_stage_model
from r1mega.families.score_head import with_score_head
from r1mega.families.spec import Kind
from r1mega.formats.hf_headers import HFHeaders
from r1mega.layout.engine_laws import engine_model_faults
from r1mega.layout.memory import rank_memory

ARCHITECTURES = {
    "deepseek_v3": "DeepseekV3ForSequenceClassification",
    "llama": "LlamaForSequenceClassification",
    "qwen2": "Qwen2ForSequenceClassification",
    "qwen3": "Qwen3ForSequenceClassification",
}


@pytest.fixture
def write(tmp_path):
    def change(hf, **fields):
        made = {name: value for name, value in {**hf, **fields}.items() if value != "absent"}
        (tmp_path / "config.json").write_text(json.dumps(made))
        return tmp_path

    return change


@pytest.mark.parametrize("name", PARAMETERS)
def test_published_models_lose_head_copies_and_mtp_layers_and_gain_one_row(name):
    hf, parameters = PARAMETERS[name]
    spec = FAMILIES[hf["model_type"]](hf)
    table = with_score_head(spec).tensors()
    head = 0 if spec.tied else spec.vocab_size * spec.hidden_size
    assert sum(math.prod(row.shape) for row in table) == parameters - head + spec.hidden_size
    assert {row.kind for row in table}.isdisjoint({Kind.COPY}) and not any(row.mtp or row.also for row in table)
    last = table[-1]
    assert (last.megatron, last.hf, last.shape) == ("score_head.weight", ("score.weight",), (1, spec.hidden_size))
    trunk = [row for row in spec.tensors() if row.kind is not Kind.COPY and not row.mtp]
    assert [r.hf for r in table[:-1]] == [r.hf for r in trunk if r.hf != ("lm_head.weight",)]


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_config_of_scores_comes_back_whole(name, write):
    hf, _ = PARAMETERS[name]
    spec = with_score_head(FAMILIES[hf["model_type"]](hf))
    assert spec.head == "score" and not spec.tied and spec.num_mtp_layers == 0
    assert spec.hf["architectures"] == [ARCHITECTURES[spec.family]]
    assert (spec.hf["id2label"], spec.hf["problem_type"]) == ({"0": "LABEL_0"}, "regression")
    assert spec.hf["pad_token_id"] == spec.pad not in spec.ends
    again = read_model(write(dict(spec.hf)))
    assert again == spec and with_score_head(again) == spec
    other = {"num_nextn_predict_layers"} if "num_nextn_predict_layers" in spec.hf else set()
    written = {"architectures", "id2label", "label2id", "problem_type", "pad_token_id", "tie_word_embeddings"}
    before = FAMILIES[hf["model_type"]](hf).hf
    assert {k for k, v in spec.hf.items() if before.get(k, "absent") != v} <= written | other


def test_padding_ends_no_text():
    qwen = FAMILIES["qwen2"]({**QWEN25_05B, "bos_token_id": 7, "pad_token_id": None, "eos_token_id": [5, 7]})
    assert qwen.pad == 5
    last = qwen.vocab_size - 1
    assert with_score_head(qwen).pad == last  # bos is an end, and there is no padding
    ends = FAMILIES["qwen2"]({**QWEN25_05B, "bos_token_id": None, "pad_token_id": last, "eos_token_id": [last, 5]})
    assert with_score_head(ends).pad == last - 1
    kept = FAMILIES["qwen2"]({**QWEN25_05B, "pad_token_id": 9, "eos_token_id": 5})
    assert with_score_head(kept).pad == 9


def test_an_end_that_the_tokenizer_adds_is_no_padding(spec):
    from r1mega.data.special_tokens import with_ends

    class Tokenizer:
        eos_token_id, name_or_path = 2, ""

        def convert_ids_to_tokens(self, i):
            return f"<{i}>"

    scores = with_score_head(with_score_head(spec).with_vocab(384, bos=0, eos=1, pad=2))
    assert scores.pad == 2
    changed = with_ends(scores, Tokenizer())
    assert changed.ends == (2,) and changed.pad == changed.hf["pad_token_id"] == 0


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"id2label": {"0": "bad", "1": "good"}}, "DeepseekV3ForSequenceClassification'] with 2 labels"),
        ({"id2label": "absent"}, "with 2 labels"),  # transformers' default
        ({"id2label": "absent", "num_labels": 3}, "with 3 labels"),
        ({"pad_token_id": 2}, r"pad_token_id = 2 is an end token .* so before the end"),
        ({"architectures": ["DeepseekV3ForTokenClassification"]}, "DeepseekV3ForTokenClassification"),
        ({"architectures": ["Qwen2ForSequenceClassification"]}, "Qwen2ForCausalLM"),
        ({"hidden_act": "gelu"}, "hidden_act"),
    ],
)
def test_what_is_not_understood_is_refused(write, spec, fields, named):
    with pytest.raises(ConfigError, match=named):
        read_model(write(with_score_head(spec).hf, **fields))


def test_what_others_write_is_read(write, spec):
    """A base's fields that a classifier made of it keeps, and a number of labels that only num_labels states."""
    theirs = {**with_score_head(spec).hf, "num_nextn_predict_layers": 1, "tie_word_embeddings": True}
    for labels in ({"id2label": {"0": "reward"}}, {"id2label": None, "num_labels": 1}):
        found = read_model(write({**theirs, **labels}))
        assert found == with_score_head(spec) and found.hf == with_score_head(spec).hf


def test_stages_of_language_models_and_the_engine_refuse_it_by_name(write, spec):
    folder = write(with_score_head(spec).hf)
    said = rf"{folder}.*: a reward model \(DeepseekV3ForSequenceClassification\).*give the folder of a language model"
    with pytest.raises(ConfigError, match=said):
        read_language_model(folder)
    with pytest.raises(ConfigError, match=said):
        read_stage_model(Model(path=folder))
    with pytest.raises(ConfigError, match=said):
        read_stage_model(Model(config=folder / "config.json"))
    assert read_stage_model(Model(path=folder), "score") == with_score_head(spec)
    assert read_stage_model(Model(path=TINY), "score") == spec
    (fault,) = engine_model_faults(Cluster(device="cpu"), with_score_head(spec))
    assert "a reward model (DeepseekV3ForSequenceClassification)" in fault


def test_its_memory_is_that_of_its_rows(spec):
    from r1mega.config.cluster import TrainerLayout

    scores = with_score_head(spec)
    (held,) = rank_memory(scores.tensors(), scores, TrainerLayout())
    (whole,) = rank_memory(spec.tensors(), spec, TrainerLayout())
    mtp = sum(math.prod(row.shape) for row in spec.tensors() if row.mtp and row.kind is not Kind.COPY)
    assert held.params == whole.params - mtp - spec.vocab_size * spec.hidden_size + spec.hidden_size
    at = [m.params for m in rank_memory(scores.tensors(), scores, TrainerLayout(pp=2))]
    assert sum(at) == held.params


def test_a_folder_of_another_language_model_is_no_beginning(write, tmp_path, spec):
    """Held against its own config.json, and that against what the score model needs."""
    from dataclasses import replace

    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    folder = write(dict(spec.hf))
    tensors = {n: torch.zeros(s) for row in spec.tensors() for n, s in zip(row.hf, row.hf_shapes, strict=True)}
    save_file(tensors, folder / "model.safetensors")
    assert HFHeaders(folder, with_score_head(spec)).faults == []
    wider = with_score_head(replace(spec, ffn_size=spec.ffn_size * 2))
    with pytest.raises(WeightMappingError, match=r"layers\.0\.mlp\.gate_proj\.weight: the model of scores needs"):
        HFHeaders(Path(folder), wider).refuse_faults()
    del tensors["model.norm.weight"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(WeightMappingError, match=r"model\.norm\.weight: missing"):
        HFHeaders(folder, with_score_head(spec)).refuse_faults()
