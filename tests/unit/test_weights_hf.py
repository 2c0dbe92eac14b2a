"""Hugging Face folders: bitwise there and back, equal to Transformers, and every fault of a folder is named."""

import json
import subprocess
import sys
import threading

import pytest
import torch
from rounding import furthest, last_bits, with_last_bits
from safetensors.torch import load_file, save_file
from trainer_data import nll

from r1mega.errors import CheckpointError, WeightMappingError

# In a process of its own: the trainer's CUDA stubs are no place to load Transformers in.
TRANSFORMERS = """
import json, sys
import torch
from transformers import AutoModelForCausalLM
folder, temperature = sys.argv[1], float(sys.argv[2])
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
result = []
for ids in json.load(sys.stdin):
    ids = torch.tensor(ids)
    with torch.no_grad():
        logp = (model(ids[None]).logits[0, :-1].float() / temperature).log_softmax(-1)
    result.append(logp.gather(1, ids[1:, None])[:, 0].tolist())
print(json.dumps([type(model).__name__, result]))
"""


@pytest.fixture(scope="module")
def trained(make_policy, documents):
    """A policy whose every tensor, expert bias included, has left its initial value."""
    policy = make_policy(mtp="joint", expert_bias_rate=0.05)
    for _ in range(3):
        policy.forward_backward(documents, nll)
        policy.optim_step(1e-2)
    return policy


@pytest.fixture(scope="module")
def folder(trained, tmp_path_factory):
    from r1mega.weights.hf_io import export

    tokenizer = tmp_path_factory.mktemp("tokenizer")
    (tokenizer / "tokenizer.json").write_text("{}")
    (tokenizer / "unrelated.txt").write_text("")
    to = tmp_path_factory.mktemp("hf") / "model"
    export(trained, to, tokenizer)
    return to


def test_export_and_load_are_bitwise(make_policy, trained, folder):
    from r1mega.weights.hf_io import load_into

    other = make_policy(seed=5)
    load_into(other, folder)
    assert all(torch.equal(t, other.state()[n]) for n, t in trained.state().items())
    assert any(t.any() for n, t in other.state().items() if n.endswith("expert_bias"))


def test_training_goes_on_from_loaded_weights(make_policy, documents, folder):
    """The optimiser's main parameters follow: a step moves the loaded weights, not the initial ones."""
    from r1mega.weights.hf_io import load_into

    policy = make_policy(seed=5)
    load_into(policy, folder)
    before = {n: t.clone() for n, t in policy.state().items()}
    policy.forward_backward(documents, nll)
    policy.optim_step(1e-4)
    assert all((t - before[n]).abs().max() < 1e-3 for n, t in policy.state().items())


def test_logprobs_equal_transformers(make_policy, trained, documents, folder):
    from r1mega.weights.hf_io import load_into

    ids = json.dumps([d.token_ids.tolist() for d in documents])
    command = [sys.executable, "-W", "ignore", "-c", TRANSFORMERS, str(folder), "0.7"]
    result = subprocess.run(command, input=ids, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    name, theirs = json.loads(result.stdout.splitlines()[-1])
    assert name == "DeepseekV3ForCausalLM"
    ours = trained.logprobs(documents, temperature=0.7)
    moved = make_policy()
    load_into(moved, folder)
    bound = last_bits(ours, with_last_bits(moved).logprobs(documents, temperature=0.7))
    learnt = [torch.tensor(b)[d.learn_from - 1 :] for d, b in zip(documents, theirs, strict=True)]
    assert furthest(ours, learnt) <= bound


def test_the_folder_is_what_vllm_needs(folder):
    config = json.loads((folder / "config.json").read_text())
    assert config["topk_method"] == "noaux_tc"
    assert config["scoring_func"] == "sigmoid"
    assert config["architectures"] == ["DeepseekV3ForCausalLM"]
    names = {p.name for p in folder.iterdir()}
    assert names == {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "README.md"}
    tensors = load_file(folder / "model.safetensors")
    assert "model.layers.2.mlp.experts.7.gate_proj.weight" in tensors
    assert torch.equal(tensors["model.layers.3.embed_tokens.weight"], tensors["model.embed_tokens.weight"])
    assert torch.equal(tensors["model.layers.3.shared_head.head.weight"], tensors["lm_head.weight"])


def test_an_export_keeps_what_came_with_its_model(trained, spec, tmp_path):
    """Licences, the card's words on them, every chat template, and a generation config that ends where we do."""
    from r1mega.weights.hf_io import export

    base = tmp_path / "base"
    base.mkdir()
    tokenizers = (
        "tokenizer.json",
        "chat_template.json",
        "tokenization_own.py",
        "additional_chat_templates/tools.jinja",
    )
    (base / "additional_chat_templates").mkdir()
    for name in (*tokenizers, "LICENSE-MODEL", "USE_POLICY.md"):
        (base / name).write_text(name)
    (base / "README.md").write_text("---\nlicense:\n- mit\nlicense_name: own\ntags: [a]\n---\n# theirs\n")
    ends = list(spec.ends)
    (base / "generation_config.json").write_text(json.dumps({"temperature": 0.6, "eos_token_id": ends}))
    export(trained, tmp_path / "hf", base)
    for name in (*tokenizers, "LICENSE-MODEL", "USE_POLICY.md"):
        assert (tmp_path / "hf" / name).read_text() == name
    assert "license:\n- mit\nlicense_name: own\n---\n" in (tmp_path / "hf" / "README.md").read_text()
    generation = json.loads((tmp_path / "hf" / "generation_config.json").read_text())
    assert (generation["temperature"], generation["eos_token_id"]) == (0.6, ends)
    for others in (7, [*ends, 7], []):  # the model's own, as its config.json says, whatever its source's file listed
        (base / "generation_config.json").write_text(json.dumps({"temperature": 0.6, "eos_token_id": others}))
        export(trained, tmp_path / "hf", base)
        generation = json.loads((tmp_path / "hf" / "generation_config.json").read_text())
        config = json.loads((tmp_path / "hf" / "config.json").read_text())
        assert (
            (generation["temperature"], generation["eos_token_id"])
            == (0.6, spec.eos)
            == (0.6, config["eos_token_id"])
        )


def test_an_exported_config_reads_back(folder, spec):
    from r1mega.families.registry import read_model

    again = read_model(folder)
    assert [r.hf for r in again.tensors()] == [r.hf for r in spec.tensors()]


def test_every_fault_of_a_folder_is_listed_at_once(make_policy, folder, tmp_path):
    from r1mega.weights.hf_io import load_into

    tensors = load_file(folder / "model.safetensors")
    norm = tensors.pop("model.norm.weight")
    tensors["model.layers.0.mlp.down_proj.weight"] = torch.zeros(3, 3)
    tensors["model.layers.9.surprise.weight"] = norm
    save_file(tensors, tmp_path / "a.safetensors")
    save_file({"lm_head.weight": tensors["lm_head.weight"]}, tmp_path / "b.safetensors")
    policy = make_policy()
    before = {n: t.clone() for n, t in policy.state().items()}
    with pytest.raises(WeightMappingError) as fault:
        load_into(policy, tmp_path)
    for part in ("4 faults", "model.norm.weight: missing", "(3, 3)", "surprise.weight: unmapped", "found 2 times"):
        assert part in str(fault.value)
    assert all(torch.equal(t, before[n]) for n, t in policy.state().items())


def test_a_stage_reads_a_folder_as_strictly_as_a_conversion(make_policy, folder, tmp_path):
    """Weights of no float dtype, an index that names a missing file; files beside an index do not count."""
    from r1mega.weights.hf_io import load_into

    tensors = load_file(folder / "model.safetensors")
    save_file(tensors, tmp_path / "model.safetensors")
    save_file({"tok_embeddings.weight": torch.ones(2)}, tmp_path / "consolidated.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(tensors, "model.safetensors")}))
    load_into(make_policy(), tmp_path)
    where = {**dict.fromkeys(tensors, "model.safetensors"), "lm_head.weight": "model-2.safetensors"}
    index.write_text(json.dumps({"weight_map": where}))
    with pytest.raises(WeightMappingError, match=r"model-2\.safetensors: missing, model\.safetensors\.index"):
        load_into(make_policy(), tmp_path)
    index.unlink()
    (tmp_path / "consolidated.safetensors").unlink()
    tensors["lm_head.weight"] = tensors["lm_head.weight"].to(torch.int8)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(WeightMappingError, match=r"lm_head\.weight has dtype I8, not read here"):
        load_into(make_policy(), tmp_path)


def test_a_stage_starts_from_fp8_blocks_as_deepseek_publishes_them(make_policy, spec, folder, tmp_path):
    from r1mega.formats import fp8, fp8_blocks
    from r1mega.weights.hf_io import load_into

    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.2.self_attn.o_proj.weight"
    for weight in [n for row in spec.tensors() for n in row.hf if fp8_blocks.quantised(row, n)]:
        tensors[weight], tensors[weight + fp8_blocks.SUFFIX] = fp8.quantise(tensors[weight])
    save_file(tensors, tmp_path / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(
        json.dumps({**config, "quantization_config": dict(fp8_blocks.FORMS["fp8-block"])})
    )
    policy = make_policy()
    load_into(policy, tmp_path)
    wanted = fp8.dequantise(tensors[name], tensors[name + fp8_blocks.SUFFIX]).float()
    assert torch.equal(policy.state()["decoder.layers.2.self_attention.linear_proj.weight"], wanted)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightMappingError, match=r"FP8, but config\.json has no quantization_config"):
        load_into(policy, tmp_path)


def test_a_copy_that_differs_is_refused(make_policy, folder, tmp_path):
    from r1mega.weights.hf_io import load_into

    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.3.shared_head.head.weight"] += 1
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(WeightMappingError, match=r"shared_head\.head"):
        load_into(make_policy(), tmp_path)
    # Left out altogether they are no fault.
    tensors = {n: t for n, t in tensors.items() if "layers.3.embed" not in n and "shared_head.head" not in n}
    save_file(tensors, tmp_path / "model.safetensors")
    load_into(make_policy(), tmp_path)


def test_swapped_experts_are_seen(make_policy, trained, documents, folder, tmp_path):
    """Two experts in each other's place pass every check of names and shapes; the logprobs betray them."""
    from r1mega.weights.hf_io import load_into

    tensors = load_file(folder / "model.safetensors")
    for part in ("gate_proj", "up_proj", "down_proj"):
        a, b = (f"model.layers.1.mlp.experts.{e}.{part}.weight" for e in (0, 5))
        tensors[a], tensors[b] = tensors[b], tensors[a]
    save_file(tensors, tmp_path / "model.safetensors")
    other = make_policy()
    load_into(other, tmp_path)
    pairs = zip(*(p.logprobs(documents, temperature=1.0) for p in (trained, other)), strict=True)
    assert max((a - b).abs().max() for a, b in pairs) > 1e-3


def test_the_source_streams_what_its_metadata_says(trained):
    from r1mega.weights.source import PolicySource

    source = PolicySource(trained, include_mtp=False)
    stream = list(source)
    assert [(n, t.dtype, tuple(t.shape)) for n, t in stream] == source.metadata()
    assert len(source) == len(stream)
    assert not any(n.startswith("model.layers.3.") for n, _ in stream)
    assert all(t.is_contiguous() and not t.requires_grad for _, t in stream)
    assert len(PolicySource(trained, include_mtp=True)) > len(source)
    bias = next(t for n, t in stream if n.endswith("e_score_correction_bias"))
    assert bias.dtype is torch.float32


def test_the_expert_bias_stays_fp32_beside_weights_in_bf16(make_policy, monkeypatch):
    """The routers' choices hang on it: engines are told that it comes in fp32, whatever the weights are in."""
    from r1mega.weights.source import PolicySource

    policy = make_policy(mtp="joint")
    monkeypatch.setattr(policy.network.config, "params_dtype", torch.bfloat16)
    told = {name: dtype for name, dtype, _ in PolicySource(policy, include_mtp=True).metadata()}
    biases = {name for name in told if name.endswith("e_score_correction_bias")}
    assert {told[name] for name in biases} == {torch.float32}
    assert {told[name] for name in told.keys() - biases} == {torch.bfloat16}


def test_several_files_are_written_as_they_fill(trained, folder, tmp_path, monkeypatch):
    from r1mega.weights import hf_io

    monkeypatch.setattr(hf_io, "SHARD_BYTES", 1_000_000)
    hf_io.export(trained, tmp_path / "hf", None)
    index = json.loads((tmp_path / "hf/model.safetensors.index.json").read_text())
    names = sorted(set(index["weight_map"].values()))
    assert names == sorted(p.name for p in (tmp_path / "hf").glob("*.safetensors")) and len(names) > 3
    assert not list((tmp_path / "hf").glob("*.part"))
    whole = load_file(folder / "model.safetensors")
    parts = {name: load_file(tmp_path / "hf" / name) for name in names}
    assert index["weight_map"].keys() == whole.keys()
    assert all(torch.equal(whole[key], parts[name][key]) for key, name in index["weight_map"].items())
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in whole.values())


def test_an_export_beside_training_has_the_weights_of_its_moment(make_policy, documents, tmp_path, monkeypatch):
    from r1mega.runtime.background import Background
    from r1mega.weights import hf_io

    policy = make_policy(mtp="joint")
    hf_io.export(policy, tmp_path / "before", None)
    go_on = threading.Event()
    write = hf_io._write_tensors

    def held_up(tensors, to):
        assert go_on.wait(600)
        write(tensors, to)

    monkeypatch.setattr(hf_io, "_write_tensors", held_up)
    beside = Background("export")
    hf_io.export(policy, tmp_path / "beside", None, beside=beside)
    policy.forward_backward(documents, nll)
    policy.optim_step(1e-2)
    assert beside.busy and not (tmp_path / "beside").exists()
    go_on.set()
    beside.wait()
    assert (tmp_path / "beside/config.json").is_file()
    before, then, now = (tmp_path / n / "model.safetensors" for n in ("before", "beside", "now"))
    hf_io.export(policy, tmp_path / "now", None)
    assert then.read_bytes() == before.read_bytes() != now.read_bytes()


def test_an_export_that_fails_is_told_at_the_next_boundary(trained, tmp_path):
    from r1mega.runtime.background import Background
    from r1mega.weights import hf_io

    (tmp_path / "file").write_text("in the way")
    beside = Background("export")
    hf_io.export(trained, tmp_path / "file" / "hf", None, beside=beside)
    with pytest.raises(CheckpointError, match=r"hf: could not be written .*--resume"):
        beside.wait()
