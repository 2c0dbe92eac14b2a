"""What a chain runs again: exactly what depends on a change, by content; and what its dry run says of that."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from small_chain import NAMES, SmallChain, write_weights

from r1mega.errors import ConfigError, RunDirError
from r1mega.pipeline import chain as chains
from r1mega.pipeline.artefacts import State
from r1mega.pipeline.plan import Selection


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The chain, run to its end."""
    folder = tmp_path_factory.mktemp("chain")
    with pytest.MonkeyPatch.context() as monkeypatch:
        chain = SmallChain(folder, monkeypatch)
        chain.write()
        assert chain.run() == NAMES
    return folder


@pytest.fixture
def done(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SmallChain:
    """A copy of it."""
    shutil.copytree(whole, tmp_path / "chain")
    return SmallChain(tmp_path / "chain", monkeypatch)


def replace(file: str, before: str, after: str) -> Callable[[SmallChain], None]:
    def change(chain: SmallChain) -> None:
        text = (chain.folder / file).read_text()
        assert before in text
        (chain.folder / file).write_text(text.replace(before, after, 1))

    return change


def remove(file: str) -> Callable[[SmallChain], None]:
    def change(chain: SmallChain) -> None:
        path = chain.folder / file
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return change


def nothing(chain: SmallChain) -> None: ...


def touched(chain: SmallChain) -> None:
    for file in chain.folder.rglob("*"):
        os.utime(file, (1, 1))


def moved(chain: SmallChain) -> None:
    chain.run_dir = chain.run_dir.rename(chain.folder / "elsewhere")


def all_moved(chain: SmallChain) -> None:
    chain.folder = chain.folder.rename(chain.folder.with_name("moved"))
    chain.run_dir = chain.folder / "run"


def same_weights_in_two_files(chain: SmallChain) -> None:
    """Under another name."""
    (chain.folder / "weights/model.safetensors").rename(chain.folder / "weights/model-00001.safetensors")


def longer(chain: SmallChain) -> None:
    chain.seconds = 20.0
    replace("stages/rl.toml", "clip_low = 0.2", "clip_low = 0.1")(chain)


def keys_in_another_order(chain: SmallChain) -> None:
    file = chain.folder / "model.json"
    found = json.loads(file.read_text())
    file.write_text(json.dumps(dict(reversed(found.items())), indent=7))


def a_precision(chain: SmallChain) -> None:
    replace("cluster.toml", 'device = "cpu"', 'device = "cuda"')(chain)
    replace("cluster.toml", 'dtype = "fp32"', 'dtype = "bf16"')(chain)


AFTER_SFT, ALL_BUT_OTHER = ["sft", "rl", "eval"], NAMES[:-1]
CHANGES = {
    "nothing": (nothing, (), []),
    "a setting of the first stage": (replace("stages/base.toml", "lr = 1e-3", "lr = 2e-3"), (), ALL_BUT_OTHER),
    "a setting of a stage in the middle": (
        replace("stages/rl.toml", "clip_low = 0.2", "clip_low = 0.1"), (), ["rl", "eval"],
    ),
    "and it takes another time": (longer, (), ["rl", "eval", "control"]),
    "a setting of data": (replace("stages/pairs.toml", "num = 40", "num = 41"), (), ["pairs", "rm", "rl", "eval"]),
    "an override": (nothing, ("sft:seed=3",), AFTER_SFT),
    "an override of all": (nothing, ("seed=3",), NAMES),
    "an override that changes nothing learnt": (nothing, ("save.keep_last=7",), []),
    "an override that says what is so": (nothing, ("rl:objective.clip_low=0.2",), []),
    "a byte of a data file": (replace("rows.jsonl", "[]", "{}"), (), AFTER_SFT),
    "a template": (replace("template.jinja", "messages", "turns"), (), AFTER_SFT),
    "the model's config": (replace("model.json", '"hidden_size": 128', '"hidden_size": 256'), (), ALL_BUT_OTHER),
    "the order of its keys": (keys_in_another_order, (), []),
    "a comment": (replace("stages/base.toml", "# the comment", "# another"), (), []),
    "the order of a config's keys": (
        replace("stages/base.toml", "num_steps = 20\ndocuments_per_step = 4", "documents_per_step=4\nnum_steps=20"),
        (), [],
    ),
    "times alone": (touched, (), []),
    "another place of the run": (moved, (), []),
    "another place of everything": (all_moved, (), []),
    "other weights from outside": (lambda chain: write_weights(chain.folder / "weights", "new"), (), ["other"]),
    "the same weights in another file": (same_weights_in_two_files, (), []),
    "the same weights elsewhere": (
        lambda chain: write_weights(chain.folder / "copy", "other"), ("other:model.path={folder}/copy",), [],
    ),
    "other weights elsewhere": (
        lambda chain: write_weights(chain.folder / "copy", "new"), ("other:model.path={folder}/copy",), ["other"],
    ),
    "a layout that is equal up to rounding": (replace("cluster.toml", "threads = 2", "threads = 1"), (), []),
    "the engine's layout": (replace("cluster.toml", "kv_cache_gib = 0.5", "kv_cache_gib = 0.6"), (), []),
    "a precision": (a_precision, (), NAMES),
    "an output is gone": (remove("run/base/hf"), (), ["base"]),
    "a file of an output is gone": (remove("run/rl/hf/tokenizer_config.json"), (), ["rl"]),
    "an output is another": (replace("run/pairs/pairs.jsonl", "row", "column"), (), ["pairs"]),
    "weights are damaged": (lambda chain: write_weights(chain.run_dir / "sft/hf", "noise"), (), ["sft"]),
    "a stage had not ended": (remove("run/rm/summary.json"), (), ["rm"]),
    "a stage is gone": (remove("run/eval"), (), ["eval"]),
    "a stage takes more steps": (replace("stages/rl.toml", "num_steps = 4", "num_steps = 6"), (), ["rl", "eval"]),
    "a stage takes fewer": (replace("stages/rl.toml", "num_steps = 4", "num_steps = 2"), (), ["rl", "eval"]),
    "a stage starts from another": (
        replace("chain.toml", 'eval.toml"\nstart = "rl"', 'eval.toml"\nstart = "sft"'), (), ["eval"],
    ),
    "a setting in the chain's file": (
        replace("chain.toml", '"rewards.accuracy" = 1.0', '"rewards.accuracy" = 2.0'), (), ["rl", "eval"],
    ),
    "a path in the chain's file": (
        lambda chain: (
            write_weights(chain.folder / "new", "new"),
            replace("chain.toml", '"model.path" = "weights"', '"model.path" = "new"')(chain),
        ), (), ["other"],
    ),
}  # fmt: skip


def test_there_are_twenty_changes_and_more():
    assert sum(bool(expected) for _, _, expected in CHANGES.values()) >= 20


@pytest.mark.parametrize("name", CHANGES)
def test_what_depends_on_a_change_runs_again_and_nothing_else(done: SmallChain, name: str):
    change, overrides, expected = CHANGES[name]
    change(done)
    overrides = [text.format(folder=done.folder) for text in overrides]
    before = {path: path.read_bytes() for path in done.run_dir.rglob("*") if path.is_file()}
    plans = done.chain(*overrides).plan(glance=True)
    assert {path: path.read_bytes() for path in done.run_dir.rglob("*") if path.is_file()} == before
    certain = [plan.node.name for plan in plans if plan.runs == "yes"]
    perhaps = [plan.node.name for plan in plans if plan.runs == "perhaps"]

    assert done.run(*overrides) == expected
    assert set(certain) <= set(expected) <= {*certain, *perhaps}, (certain, perhaps)
    assert {plan.runs for plan in done.chain(*overrides).plan()} == {"no"}


def test_what_follows_is_done_where_a_stage_makes_the_same_again(done: SmallChain):
    """Pairs are others, and happen to be the same rows."""
    (done.run_dir / "pairs/pairs.jsonl").read_text()
    same = json.loads((done.run_dir / "pairs/pairs.jsonl").read_text())["row"]
    done.made = lambda plan, content: same if plan.node.name == "pairs" else content
    replace("stages/pairs.toml", "num = 40", "num = 41")(done)
    plans = {plan.node.name: plan for plan in done.chain().plan(glance=True)}
    assert plans["pairs"].told() == "begins anew: questions.0.num: 40 -> 41"
    assert plans["rm"].told().startswith("is looked at after pairs: done if")
    assert done.run() == ["pairs"]


def test_what_was_there_is_set_aside_whole(done: SmallChain, capsys: pytest.CaptureFixture[str]):
    for number, seed in enumerate((5, 6), 1):
        before = {p.name: p.read_bytes() for p in (done.run_dir / "eval").glob("*.json")}
        assert done.run(f"eval:seed={seed}") == ["eval"]
        aside = done.run_dir / f".superseded/eval.{number}"
        assert {p.name: p.read_bytes() for p in aside.glob("*.json")} == before
        assert f"eval: what was there is now {aside}" in capsys.readouterr().out


def test_a_stage_that_goes_on_is_in_the_same_directory_and_counts_as_half_done_meanwhile(
    done: SmallChain, monkeypatch: pytest.MonkeyPatch
):
    """Also where the chain dies right when its config is written: more steps were asked for than were taken."""
    known_as = json.loads((done.run_dir / "rl/run.json").read_text())["run"]
    replace("stages/rl.toml", "num_steps = 4", "num_steps = 6")(done)
    recorder = chains._run_stage

    def killed(plan, chain, starts):
        recorder(plan, chain, starts)
        (done.run_dir / "rl/summary.json").unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(chains, "_run_stage", killed)
    with pytest.raises(KeyboardInterrupt):
        done.run()
    assert json.loads((done.run_dir / "rl/config.json").read_text())["stage"]["num_steps"] == 6
    assert not (done.run_dir / "summary.json").exists()
    monkeypatch.setattr(chains, "_run_stage", recorder)
    assert done.chain().plan()[4].told() == "goes on: half done: step 4 is saved"
    assert done.run() == ["rl", "eval"]
    assert json.loads((done.run_dir / "rl/run.json").read_text())["earlier"] == [known_as]  # it is a copy


def test_an_output_that_is_damaged_after_the_chain_died_at_its_end_is_noticed_from_the_next_start_on(
    done: SmallChain,
):
    (done.run_dir / "pairs/outputs.json").unlink()
    assert done.run() == []
    write_weights(done.run_dir / "sft/hf", "noise")
    replace("run/pairs/pairs.jsonl", "row", "column")(done)
    assert done.run() == ["pairs", "sft"]


def test_what_another_process_holds_is_not_set_aside(done: SmallChain, monkeypatch: pytest.MonkeyPatch):
    import fcntl

    monkeypatch.setattr("r1mega.pipeline.artefacts.LOCK_TIMEOUT_S", 0.0)
    with (done.run_dir / "eval/.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(RunDirError, match="another process is running in this directory"):
            done.run("eval:seed=3")
    assert done.run("eval:seed=3") == ["eval"]


def test_two_chains_do_not_run_in_one_directory(done: SmallChain):
    import fcntl

    with (done.run_dir / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(RunDirError, match="another chain is running in this directory"):
            done.run("eval:seed=3")
    assert done.ran == []


# ---- stages by name ---------------------------------------------------------------------------------------------


def test_stages_are_asked_for_by_name(done: SmallChain, capsys: pytest.CaptureFixture[str]):
    assert done.run("seed=3", asked=Selection(last="pairs")) == ["base", "pairs"]
    assert "not done yet: rm, sft, rl, eval, control, other; continue" in capsys.readouterr().out
    assert not (done.run_dir / "summary.json").exists()  # it was of another chain
    assert done.run("seed=3", asked=Selection(only="sft")) == ["sft"]
    assert done.run("seed=3", asked=Selection(first="pairs", last="rm")) == ["rm"]
    assert done.run("seed=3", asked=Selection(first="rl")) == ["rl", "eval", "control", "other"]
    assert json.loads((done.run_dir / "summary.json").read_text())["stages"].keys() == set(NAMES)


@pytest.mark.parametrize(
    ("asked", "error", "message"),
    [
        (Selection(only="rl"), RunDirError, r"rl needs what stage sft leaves in \S+, .*begins anew after base: seed"),
        (Selection(first="rm"), RunDirError, r"rm needs what stage base leaves in \S+, .*: ask for base as well"),
        (Selection(first="smt"), ConfigError, r"--from smt: no stage is named so; .* \(did you mean 'sft'\?\)"),
        (Selection(first="rl", last="rm"), ConfigError, "--from rl --until rm: rm comes before rl"),
        (Selection(first="rl", only="rm"), ConfigError, "--only rm is one stage: leave out --from and --until"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_for_is_one_message(done: SmallChain, asked: Selection, error, message: str):
    overrides = ("base:seed=3", "sft:seed=3")
    for answer in (
        lambda: done.run(*overrides, asked=asked),
        lambda: chains.tell_plan(done.chain(*overrides, asked=asked)),
    ):
        with pytest.raises(error, match=message):
            answer()
    assert done.ran == []


def test_a_dry_run_says_what_and_why(done: SmallChain, capsys: pytest.CaptureFixture[str], monkeypatch):
    replace("rows.jsonl", "[]", "{}")(done)
    remove("run/control")(done)
    remove("run/pairs/pairs.jsonl")(done)
    monkeypatch.setattr("r1mega.runtime.digests.KEPT_BYTES", 50)
    write_weights(done.folder / "weights", "other" * 20)
    chains.tell_plan(done.chain("eval:sampling.temperature=0.5", asked=Selection(first="pairs")))
    said = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert said["base"] == "not asked for (done)"
    assert said["pairs"] == "goes on: pairs.jsonl: is not there"
    assert said["rm"].startswith("is looked at after pairs")
    assert said["sft"].startswith("begins anew: data.files: other content than the run began with (digest")
    assert said["rl"].startswith("is looked at after sft and rm")
    assert said["eval"] == "begins anew after rl: sampling.temperature: 1.0 -> 0.5"
    assert said["control"] == "begins after rl"
    assert said["other"] == f"is looked at: not hashed yet: {done.folder}/weights/model.safetensors"
    assert done.chain().plan()[7].standing.state is State.CHANGED
