"""Conversions: bit for bit there and back, through Megatron's own loader, from training checkpoints, in parts."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from conversion_data import ONE, assert_same, load_all, tiny_spec, unique_tensors, write_folder

from r1mega.conversion.convert import convert
from r1mega.conversion.verify import verify
from r1mega.errors import CheckpointError, ConversionError, WeightMappingError


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    spec = tiny_spec()
    return write_folder(tmp_path_factory.mktemp("source") / "tiny", spec, unique_tensors(spec), num_files=3)


@pytest.fixture(scope="module")
def megatron(source, tmp_path_factory):
    out = tmp_path_factory.mktemp("megatron") / "tiny"
    assert convert(source, out, "megatron", None, ONE).num_parts > 3
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("changes", [{}, {"q_lora_rank": None, "num_nextn_predict_layers": 0, "vocab_size": 391}])
def test_there_and_back_is_bitwise(tmp_path, dtype, changes):
    spec = tiny_spec(**changes)
    tensors = unique_tensors(spec, dtype)
    source = write_folder(tmp_path / "a", spec, tensors, num_files=2)
    convert(source, tmp_path / "b", "megatron", None, ONE)
    report = convert(tmp_path / "b", tmp_path / "c", "hf", None, replace(ONE, shard_bytes=1 << 19))
    assert report.num_tensors == len(tensors)
    assert_same(load_all(tmp_path / "c"), tensors)
    assert verify(source, tmp_path / "b", None).num_tensors == len(tensors)
    index = json.loads((tmp_path / "c" / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == tensors.keys()
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in tensors.values())


def test_a_policy_starts_from_a_converted_folder(make_policy, source, megatron):
    from r1mega.weights.megatron_io import load_weights

    policy, other = make_policy(seed=3), make_policy(seed=4)
    load_weights(policy, megatron)
    load_weights(other, source)
    assert all(torch.equal(t, other.state()[n]) for n, t in policy.state().items())
    embedding = load_all(source)["model.embed_tokens.weight"]
    assert torch.equal(policy.state()["embedding.word_embeddings.weight"], embedding)
    main = dict(policy.network.named_parameters())
    assert torch.equal(main["embedding.word_embeddings.weight"], embedding)


def test_half_precision_weights_are_cast_into_the_policy(make_policy, tmp_path):
    from r1mega.weights.megatron_io import load_weights

    spec = tiny_spec()
    tensors = unique_tensors(spec, torch.bfloat16)
    convert(write_folder(tmp_path / "a", spec, tensors), tmp_path / "b", "megatron", None, ONE)
    policy = make_policy()
    load_weights(policy, tmp_path / "b")
    assert torch.equal(policy.state()["output_layer.weight"], tensors["lm_head.weight"].float())


def test_a_folder_of_another_model_is_refused(make_policy, megatron):
    from r1mega.trainer.checkpoint.checkpointer import Checkpointer
    from r1mega.weights.megatron_io import load_weights

    policy = make_policy(spec=tiny_spec(vocab_size=400))
    with pytest.raises(CheckpointError, match=r"another model.*embedding|another model.*output_layer"):
        load_weights(policy, megatron)
    with pytest.raises(CheckpointError, match=r"model\.path"):
        Checkpointer(policy).load(megatron)


def test_a_training_checkpoint_becomes_what_the_policy_exports(make_policy, documents, tmp_path):
    from trainer_data import nll

    from r1mega.trainer.checkpoint.checkpointer import Checkpointer
    from r1mega.weights.hf_io import export

    policy = make_policy(mtp="joint", expert_bias_rate=0.05)
    policy.refresh_reference()
    policy.forward_backward(documents, nll)
    policy.optim_step(1e-2)
    Checkpointer(policy).save(tmp_path / "step_1", {"step": 1})
    export(policy, tmp_path / "exported", None)
    convert(tmp_path / "step_1", tmp_path / "converted", "hf", None, replace(ONE, without_tokenizer=True))
    assert_same(load_all(tmp_path / "converted"), load_all(tmp_path / "exported"))
    names = ("config.json", "generation_config.json")
    ours, theirs = ([json.loads((tmp_path / f / n).read_text()) for n in names] for f in ("converted", "exported"))
    assert ours == theirs


def test_what_belongs_to_a_model_travels_along(source, megatron, tmp_path):
    convert(megatron, tmp_path / "hf", "hf", "bf16", ONE)
    for name in (
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "generation_config.json",
        "LICENSE",
        "USE_POLICY.md",
    ):
        assert (megatron / name).read_bytes() == (source / name).read_bytes()
        assert (tmp_path / "hf" / name).read_bytes() == (source / name).read_bytes()
    card = (megatron / "README.md").read_text()
    for part in (
        "license: mit\nlicense_link: LICENSE\n---",
        "compared with its source (count",
        "Hugging Face folder `tiny`",
        "deepseek_v3",
        "851,216",
        "325,384",
        "float32",
        "r1mega",
    ):
        assert part in card
    assert "is its source rounded to bf16" in (tmp_path / "hf" / "README.md").read_text()
    tensors = load_all(tmp_path / "hf")
    assert {t.dtype for n, t in tensors.items() if "e_score" not in n} == {torch.bfloat16}
    assert {t.dtype for n, t in tensors.items() if "e_score" in n} == {torch.float32}
    wanted = load_all(source)
    assert all(torch.equal(t, wanted[n].to(t.dtype)) for n, t in tensors.items())
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["dtype"] == config["torch_dtype"] == "bfloat16"  # older transformers and vLLM know the second


def test_several_processes_write_the_same_bytes(source, megatron, tmp_path):
    two = replace(ONE, num_processes=2)
    convert(source, tmp_path / "megatron", "megatron", None, two)
    convert(megatron, tmp_path / "hf", "hf", None, two)
    convert(megatron, tmp_path / "hf1", "hf", None, ONE)
    for a, b in ((tmp_path / "megatron", megatron), (tmp_path / "hf", tmp_path / "hf1")):
        assert {p.name for p in a.iterdir()} == {p.name for p in b.iterdir()}
        for file in a.iterdir():
            assert file.read_bytes() == (b / file.name).read_bytes(), file.name
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hf", "hf1", "megatron"]


def test_finished_parts_are_kept_and_a_changed_source_starts_over(source, tmp_path, monkeypatch):
    from r1mega.conversion import writers

    spec = tiny_spec()
    own = write_folder(tmp_path / "own", spec, unique_tensors(spec))
    original, calls = writers.MegatronWriter.write, []

    def failing(self, out, part, count):
        calls.append(part.number)
        if part.number == 2 and len(calls) == 3:
            raise KeyboardInterrupt
        return original(self, out, part, count)

    monkeypatch.setattr(writers.MegatronWriter, "write", failing)
    with pytest.raises(KeyboardInterrupt):
        convert(own, tmp_path / "out", "megatron", None, ONE)
    assert not (tmp_path / "out").exists()
    calls.append(-1)
    report = convert(own, tmp_path / "out", "megatron", None, ONE)
    assert report.num_kept == 2
    assert calls == [0, 1, 2, -1, *range(2, report.num_parts)]
    assert verify(own, tmp_path / "out", None).largest == 0

    calls.clear()
    with pytest.raises(KeyboardInterrupt):
        convert(own, tmp_path / "out2", "megatron", None, ONE)
    file = own / "model.safetensors"
    file.write_bytes(file.read_bytes())  # another time of change
    assert convert(own, tmp_path / "out2", "megatron", None, ONE).num_kept == 0


def test_the_audit_sees_what_was_written_wrongly(source, tmp_path, monkeypatch):
    from r1mega.formats import torch_dist

    original = torch_dist.write_chunk

    def upside_down(file, tensor):
        swapped = tensor.flip(-2) if tensor.shape == (128, 128) else tensor
        return original(file, swapped)

    monkeypatch.setattr(torch_dist, "write_chunk", upside_down)
    with pytest.raises(WeightMappingError, match=r"not what was read \(4 faults\)") as fault:
        convert(source, tmp_path / "out", "megatron", None, ONE)
    assert "model.layers.2.self_attn.o_proj.weight: written as float32 128x128" in str(fault.value)
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(torch_dist, "write_chunk", original)
    assert convert(source, tmp_path / "out", "megatron", None, ONE).num_kept == 0


def test_an_existing_folder_is_left_alone(source, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(ConversionError, match="exists"):
        convert(source, tmp_path / "out", "megatron", None, ONE)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_folder_that_appears_meanwhile_is_left_alone(source, tmp_path, monkeypatch):
    """Empty as it is, a rename would replace it."""
    from r1mega.conversion import writers

    original = writers.MegatronWriter.finish

    def meanwhile(self, out, records, save_id):
        (tmp_path / "out").mkdir()
        original(self, out, records, save_id)

    monkeypatch.setattr(writers.MegatronWriter, "finish", meanwhile)
    with pytest.raises(ConversionError, match="out: exists"):
        convert(source, tmp_path / "out", "megatron", None, ONE)
    assert list((tmp_path / "out").iterdir()) == []
    # What a kill after the rename would leave goes when the next command finds its output.
    shutil.rmtree(tmp_path / ".out.converting" / "out")
    with pytest.raises(ConversionError, match="out: exists"):
        convert(source, tmp_path / "out", "megatron", None, ONE)
    assert not (tmp_path / ".out.converting").exists()


def test_places_where_no_folder_can_be_made(source, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / ".busy.converting").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for out, named in (
        ("file/out", "cannot be made"),
        ("busy", "cannot be made"),
        ("x" * 250, "cannot be made"),
        ("link", "link: exists"),
    ):
        with pytest.raises(ConversionError, match=named):
            convert(source, tmp_path / out, "megatron", None, ONE)


@pytest.mark.parametrize("form", ["megatron", "hf"])
def test_records_that_are_torn_and_files_that_are_gone_are_made_anew(source, tmp_path, monkeypatch, form):
    from r1mega.conversion import writers

    writer = {"megatron": writers.MegatronWriter, "hf": writers.HFWriter}[form]
    original = writer.finish
    options = replace(ONE, shard_bytes=2 << 20)

    def killed(self, out, records, save_id):
        raise KeyboardInterrupt

    monkeypatch.setattr(writer, "finish", killed)
    with pytest.raises(KeyboardInterrupt):
        convert(source, tmp_path / "out", form, None, options)
    work = tmp_path / ".out.converting"
    records = sorted((work / "parts").iterdir())
    records[0].write_text("")
    sorted((work / "out").iterdir())[-1].unlink()
    monkeypatch.setattr(writer, "finish", original)
    report = convert(source, tmp_path / "out", form, None, options)
    assert 0 < report.num_kept < report.num_parts - 1
    assert verify(source, tmp_path / "out", None).largest == 0


def test_the_command_line(source, megatron, tmp_path, capsys):
    from r1mega.conversion.commands import app

    def run(*words):
        try:
            app([str(w) for w in words], standalone_mode=False)
        finally:
            run.said = capsys.readouterr().out
        return run.said

    assert "135 tensors" in run("to-megatron", source, tmp_path / "m", "--cluster", "laptop2", "--processes", 1)
    assert "135 tensors" in run("to-hf", tmp_path / "m", tmp_path / "h", "--dtype", "fp8-block", "--processes", 1)
    assert f"with the tokenizer of {tmp_path / 'm'}" in run.said
    assert "bitwise equal" in run("verify", source, megatron)
    assert "equal within" in run("verify", source, tmp_path / "h", "--tolerance", 1e9)
    assert "within half a step of e4m3" in (tmp_path / "h" / "README.md").read_text()
    text = run("inspect", tmp_path / "h", "--tensors")
    for part in ("FP8", "deepseek_v3", "851,216", "equal to their originals", "lm_head.weight  (384, 128)  bfloat16"):
        assert part in text
    with pytest.raises(ConversionError, match="contradict each other"):
        run("to-hf", tmp_path / "m", tmp_path / "x", "--tokenizer", source, "--no-tokenizer")
    with pytest.raises(ConversionError, match="already"):
        run("to-megatron", megatron, tmp_path / "x")
