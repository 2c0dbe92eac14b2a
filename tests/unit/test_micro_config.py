"""configs/micro is the chain of configs/tiny, in small: the same stages of the same files, handed on alike."""

from pathlib import Path

from r1mega.pipeline.graph import load_pipeline, look_at_chain

ROOT = Path(__file__).parents[2]
MICRO = ROOT / "configs/micro/pipeline.toml"


def test_its_stages_are_those_of_the_tiny_chain():
    micro, tiny = load_pipeline(MICRO), load_pipeline(ROOT / "configs/tiny/r1/pipeline.toml")
    alike = ("name", "config", "start", "reads", "same_seconds_as")
    found, expected = ([[getattr(node, field) for field in alike] for node in c.stages] for c in (micro, tiny))
    assert found == expected


def test_its_table_is_that_of_the_tiny_chain_and_its_relations_claim_the_same():
    micro, tiny = load_pipeline(MICRO), load_pipeline(ROOT / "configs/tiny/r1/pipeline.toml")
    assert micro.table is not None and micro.table == tiny.table
    assert micro.relations and [one.claim for one in micro.relations] == [one.claim for one in tiny.relations]


def test_each_of_them_can_start(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    looks = look_at_chain(load_pipeline(MICRO), "laptop", tmp_path / "run", [])
    assert [seen.absent for seen in looks if seen.recipe.trains and seen.recipe.model.path is None] == [()] * 3
    steps = {s.recipe.num_steps for s in looks if s.recipe.stage in ("grpo", "pretrain")}
    assert max(steps) <= 300, "some hundred steps of the base, and a handful of all others"
