"""tools/mutate.py on a small project of its own, and the project's own table of faults against today's code."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

FILES = {
    "package/__init__.py": "",
    "package/area.py": "def area(a, b):\n    return a * b\n",
    "package/house.py": "from package.area import area\n\n\ndef house(a, b):\n    return [area(a, b)]\n",
    "package/lonely.py": "def twice(x):\n    return 2 * x\n",
    "tests/unit/helper.py": "from package.house import house\n",
    "tests/unit/test_area.py": "from package.area import area\n\n\ndef test_area():\n    assert area(2, 2) == 4\n",
    "tests/unit/test_house.py": "from helper import house\n\n\ndef test_house():\n    assert house(2, 3) == [6]\n",
    "tests/unit/test_all.py": "import subprocess\nimport sys\n\n\ndef test_lonely():\n"
    "    code = 'import package.lonely; print(package.lonely.twice(4))'\n"
    "    assert subprocess.check_output([sys.executable, '-c', code], text=True) == '8\\n'\n",
}
TABLE = """
[[mutant]]
id = "sum"
file = "package/area.py"
breaks = "a sum, which two times two does not tell"
old = "a * b"
new = "a + b"

[[mutant]]
id = "none"
file = "package/area.py"
breaks = "no area"
old = "a * b"
new = "0"

[[mutant]]
id = "far"
file = "package/lonely.py"
breaks = "what another process imports"
old = "2 * x"
new = "3 * x"

[[mutant]]
id = "same"
file = "package/lonely.py"
breaks = "nothing that a test looks at"
old = "2 * x"
new = "x + x"
"""


def _tool():
    spec = importlib.util.spec_from_file_location("mutate", ROOT / "tools/mutate.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["mutate"] = module  # where dataclasses look their module up
    spec.loader.exec_module(module)
    return module


mutate = _tool()


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # they take most of a start
    root = tmp_path / "project"
    for name, text in {**FILES, "tools/mutants/all.toml": TABLE}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    return root


def verdicts(root: Path) -> dict[str, tuple[str, int | None]]:
    rows = json.loads((root / "docs/measurements/mutants.json").read_text())["mutants"]
    return {row["id"]: (row["killed_by"], row["distance"]) for row in rows}


def test_nearest_tests_first_survivors_are_named_and_a_run_goes_on(project: Path, capsys):
    assert mutate.main([], project) == 1
    assert verdicts(project) == {
        "sum": ("tests/unit/test_house.py::test_house", 3),
        "none": ("tests/unit/test_area.py::test_area", 1),
        "far": ("tests/unit/test_all.py::test_lonely", None),
        "same": ("", None),
    }
    printed = capsys.readouterr().out
    assert "1/4 sum: killed by tests/unit/test_house.py::test_house" in printed and "left)" in printed
    assert "4/4 same: SURVIVES" in printed and "3 of 4 killed; survivors: same" in printed
    assert (project / "package/area.py").read_text() == FILES["package/area.py"]  # the working tree is left alone
    # Judged already: nothing runs, and the survivor still counts.
    assert mutate.main([], project) == 1
    assert "1/4" not in (printed := capsys.readouterr().out) and "3 of 4 killed" in printed
    # Of another tree all is asked again, of another table what is new.
    table = project / "tools/mutants/all.toml"
    table.write_text(TABLE.partition('[[mutant]]\nid = "same"')[0])
    assert mutate.main([], project) == 0
    assert "3 of 3 killed\n" in capsys.readouterr().out
    (project / "package/__init__.py").write_text("# another tree\n")
    assert mutate.main(["none"], project) == 0
    assert "1/1 none: killed" in capsys.readouterr().out
    assert set(verdicts(project)) == {"none"}


def test_within_asks_the_nearest_alone(project: Path):
    assert mutate.main(["sum", "none", "--within", "1"], project) == 1
    assert verdicts(project) == {"sum": ("", None), "none": ("tests/unit/test_area.py::test_area", 1)}


MISFITS = [
    (
        'old = "2 * x"\nnew = "3 * x"',
        'old = "gone"\nnew = ""',
        "all.toml: far: package/lonely.py: stands 0 times in it",
    ),
    ('old = "2 * x"\nnew = "3 * x"', 'old = "x"\nnew = ""', "stands 2 times in it; bring `old` to today's code: 'x'"),
    (
        '"package/area.py"\nbreaks = "no',
        '"package/no.py"\nbreaks = "no',
        "none: package/no.py: there is no such file",
    ),
    ('breaks = "no area"', 'breaks = "no area"\nwhy = "?"', "all.toml: none: has the fields"),
    ('id = "far"', 'id = "sum"', "sum: 2 faults have this id"),
]


@pytest.mark.parametrize(("before", "after", "said"), MISFITS)
def test_a_table_that_does_not_fit_is_refused_before_any_test_runs(
    project: Path, capsys, before: str, after: str, said: str
):
    table = project / "tools/mutants/all.toml"
    table.write_text(TABLE.replace(before, after))
    assert mutate.main([], project) == 2
    assert said in capsys.readouterr().err
    assert not (project / "docs").exists()


def test_a_test_that_fails_anyway_kills_nothing(project: Path, capsys):
    (project / "tests/unit/test_area.py").write_text(
        "from package.area import area\n\n\ndef test_area():\n    area(0)\n"
    )
    assert mutate.main(["none"], project) == 2
    assert "none: tests/unit/test_area.py::test_area fails without the fault as well" in capsys.readouterr().err


def test_every_planted_fault_has_its_place_in_todays_code():
    mutants = mutate.read_table(ROOT / "tools/mutants", ROOT)
    assert all(mutant.breaks for mutant in mutants)
