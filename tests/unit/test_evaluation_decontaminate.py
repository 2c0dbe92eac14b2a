"""Decontamination: against sets of words by brute force, planted overlaps in disguise, whole files, the command."""

import contextlib
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1mega import cli
from r1mega.errors import DataError
from r1mega.evaluation import decontaminate as decontamination
from r1mega.evaluation import search_files
from r1mega.evaluation.decontaminate import decontaminate
from r1mega.evaluation.ngrams import Index, hashes, words_of
from r1mega.evaluation.normalise import normalise
from r1mega.evaluation.overlap import Evaluations
from r1mega.evaluation.row_texts import texts_of
from r1mega.evaluation.search_files import Data, blocks, search

QUESTION = (
    r"Let $x$ and $y$ be positive reals with $\frac{1}{x}+\dfrac{2}{y^{2}}\le 1{,}000$. "
    r"Find the least value of \(\sqrt{x}\cdot\pi\)."
)
SAID = "let x and y be positive reals with 1 x 2 y 2 1000 find the least value of sqrt x pi"
WORDS = SAID.split()


def words(text: str) -> list[str]:
    found = words_of([normalise(text)])
    return found.sequence(0, len(found.starts)).decode().split()


def rows(path: Path, *texts: str, field: str = "problem") -> Path:
    path.write_text("".join(json.dumps({field: text}) + "\n" for text in texts))
    return path


DISGUISES = {
    "as it stands": QUESTION,
    "capitals": QUESTION.upper(),
    "title case": QUESTION.title(),
    "spacing": QUESTION.replace(" ", " \n\t  ").replace("+", " + ").replace("{x}", "{ x }"),
    "unicode spaces": QUESTION.replace(" ", "\u00a0\u2003").replace("positive", "posi\u00adtive"),
    "other fractions": QUESTION.replace(r"\frac{1}{x}", r"\tfrac1x").replace(r"\dfrac{2}{y^{2}}", "2/y^2"),
    "delimiters": QUESTION.replace("$", "$$").replace(r"\(", r"\[").replace(r"\)", r"\]"),
    "parentheses": QUESTION.replace(r"\frac{1}{x}", r"\left( \frac{1}{x} \right)").replace("$x$", r"$\,x\;$"),
    "symbols": QUESTION.replace(r"\le", "≤").replace(r"\sqrt", "√").replace(r"\pi", "π").replace(r"\cdot", "·"),
    "synonyms": QUESTION.replace(r"\le", r"\leqslant").replace(r"\cdot", r"\times"),
    "superscripts": QUESTION.replace("y^{2}", "y²").replace("1{,}000", "1,000"),
    "thousands": QUESTION.replace("1{,}000", r"1\,000"),
    "full width": QUESTION.replace("1{,}000", "１０００").replace("positive", "ｐｏｓｉｔｉｖｅ"),
    "ligature": QUESTION.replace("Find", "ﬁnd"),
    "fonts": QUESTION.replace("positive", r"\textbf{positive}").replace("$x$", r"$\mathrm{x}$"),
    "punctuation": QUESTION.replace(". ", " -- ").replace("Let", "“Let”"),
    "within a text": "Here is one more for you. " + QUESTION + " Explain.",
}


@pytest.mark.parametrize("how", DISGUISES)
def test_a_disguise_does_not_change_the_words(how: str, tmp_path: Path):
    found = words(DISGUISES[how])
    assert SAID in " ".join(found)
    evaluations = Evaluations.read([rows(tmp_path / "e.jsonl", QUESTION)], (), 10, None)
    report = decontaminate(Data([rows(tmp_path / "d.jsonl", "nothing here", DISGUISES[how])]), evaluations)
    (hit,) = report.shown
    assert (hit.place.line, hit.place.field, hit.against.line, hit.sequences) == (2, "problem", 1, len(WORDS) - 9)
    assert hit.words == " ".join(WORDS[:10])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x2y3 ABC-12", "x 2 y 3 abc 12"),
        (r"\alpha ≠ Ω \varepsilon", "alpha omega epsilon"),
        ("cafe\u0301 CAFÉ", "café café"),
        ("求x的值。", "求 x 的 值"),
        ("f_1(1,234,567) 1,2,3", "f 1 1234567 1 2 3"),
        (r"\begin{align*} 2½ \end{align*} \pmod{7}", "2 1 2 mod 7"),
        ("हिन्दी", "हिन्दी"),
        ("", ""),
        (" .,$ ", ""),
        ("half \ud800 a pair", "half a pair"),
    ],
)
def test_words_by_hand(text: str, expected: str):
    assert " ".join(words(text)) == expected


def brute_force(text: str, n: int) -> set[tuple[str, ...]]:
    found = text.split()
    return {tuple(found[i : i + n]) for i in range(len(found) - n + 1)}


some_text = st.lists(st.sampled_from(["a", "b", "7", "77", "longwordthatislonger", "é"]), max_size=12).map(" ".join)


@given(st.lists(some_text, max_size=5), st.lists(some_text, max_size=5), st.integers(2, 4))
def test_what_is_found_is_what_sets_of_words_share(texts: list[str], looked_for: list[str], n: int):
    index = Index.of(looked_for, n)
    expected = {
        (i, sequence): [j for j, other in enumerate(looked_for) if sequence in brute_force(other, n)]
        for i, text in enumerate(texts)
        for sequence in brute_force(text, n)
    }
    expected = {key: others for key, others in expected.items() if others}
    found = {(one.text, tuple(one.words.split())): one for one in index.find(texts)}
    assert found.keys() == expected.keys()
    for key, others in expected.items():
        assert (found[key].against, found[key].num_against) == (others[0], len(others))


def test_the_same_hash_with_other_words_is_told_apart():
    """Words that differ after what is hashed of them."""
    a, b, c = ("x " * 9 + "y" * 256 + end for end in "abc")
    assert len({hashes(words_of([text]), 10)[0].item() for text in (a, b, c)}) == 1
    index = Index.of([a, b], 10)
    assert [(one.text, one.against) for one in index.find([a, c, b])] == [(0, 0), (2, 1)]


def test_hashes_hang_on_every_word_and_on_their_order():
    rng, vocabulary = random.Random(0), [a + b for a in "abcdef" for b in "xyz"]
    texts = [" ".join(rng.sample(vocabulary, 10)) for _ in range(300)]
    texts += [" ".join(reversed(texts[0].split())), *(texts[0].replace(w, w + "s") for w in texts[0].split())]
    values, places = hashes(words_of(texts), 10)
    assert len(set(values.tolist())) == len(texts) == len(places)


def test_disjoint_data_has_no_hit(tmp_path: Path):
    rng = random.Random(0)
    vocabulary = [f"word{i}" for i in range(50)]
    texts = [" ".join(rng.choices(vocabulary, k=60)) for _ in range(400)]
    evaluations = Evaluations.read([rows(tmp_path / "e.jsonl", *texts[:200])], (), 10, None)
    report = decontaminate(Data([rows(tmp_path / "d.jsonl", *texts[200:])]), evaluations)
    assert (report.hits, report.rows.total(), report.texts) == (0, 200, 200)


def test_nine_words_are_no_hit_and_ten_are(tmp_path: Path):
    evaluations = Evaluations.read([rows(tmp_path / "e.jsonl", QUESTION)], (), 10, None)
    nine, ten = (" ".join(["other", *WORDS[3:][:num], "words"]) for num in (9, 10))
    assert [hit.place.line for hit in decontaminate(Data([rows(tmp_path / "d", nine, ten)]), evaluations).shown] == [
        2
    ]


def test_short_prompts_are_found_whole_and_short_answers_are_not(tmp_path: Path):
    evaluation = tmp_path / "e.jsonl"
    evaluation.write_text(json.dumps({"question": "What is $3+4$?", "answer": "It is 7"}) + "\n")
    evaluations = Evaluations.read([evaluation], (), 10, None)
    assert evaluations.too_short == 1
    data = tmp_path / "d.jsonl"
    data.write_text(
        '{"question": "what is 3 + 4", "answer": "7"}\n{"question": "What is 3 + 4 + 5?", "answer": "It is 7"}\n'
        '{"question": "It is 7", "answer": "What is 3+4?"}\n'
    )
    (hit,) = decontaminate(Data([data]), evaluations).shown
    assert (hit.place.line, hit.place.field, hit.words) == (1, "question", "what is 3 4") and hit.sequences == 0


def test_the_texts_of_a_row():
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": [{"type": "text", "text": "a"}]}]
    row = {"id": "i", "messages": messages, "solution": "s", "answers": ["1", None, 2]}
    assert texts_of(row) == [
        ("messages[0]", "q"), ("messages[1][0]", "a"), ("answers[0]", "1"), ("solution", "s"),
    ]  # fmt: skip
    assert texts_of({"body": {"ask": "x"}, "prompt": "p"}, ["body"]) == [("body.ask", "x")]
    assert texts_of({"prompt": None}) == []
    with pytest.raises(ValueError, match="no field to look at: the row has id, note; looked for: question, "):
        texts_of({"id": "x", "note": "y"})


def write_many(path: Path, hit_lines: set[int], num: int = 300) -> Path:
    with path.open("w") as file:
        for line in range(1, num + 1):
            text = f"Row {line} of many. " + (QUESTION.upper() if line in hit_lines else "No more.")
            file.write(json.dumps({"problem": text, "n": line}) + ("\n\n" if line % 50 == 0 else "\n"))
        file.write(json.dumps({"problem": "the last, without an end of line", "n": num + 1}))
    return path


@pytest.mark.parametrize("processes", [1, 2])
def test_what_is_left_is_byte_for_byte_the_rest(processes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Small blocks, so that lines, numbers and ends of blocks meet in every way; blank lines stay."""
    monkeypatch.setattr(search_files.blocks, "__defaults__", (700,))
    hit_lines = {1, 2, 17, 49, 50, 51, 299, 300}
    data, clean = write_many(tmp_path / "d.jsonl", hit_lines), rows(tmp_path / "clean.jsonl", "a b c", "d e f")
    evaluations = Evaluations.read([rows(tmp_path / "e.jsonl", "what is it", QUESTION)], (), 10, None)
    report = decontaminate(Data([data, clean], (), processes), evaluations, tmp_path / "out")
    lines = data.read_bytes().splitlines(keepends=True)
    kept = b"".join(x for x in lines if not (x.strip() and json.loads(x)["n"] in hit_lines))
    assert (tmp_path / "out/d.jsonl").read_bytes() == kept
    assert (tmp_path / "out/clean.jsonl").read_bytes() == clean.read_bytes()
    hits = [json.loads(line) for line in (tmp_path / "out/hits.jsonl").read_text().splitlines()]
    places = {number for number, x in enumerate(lines, 1) if x.strip() and json.loads(x)["n"] in hit_lines}
    assert {hit["place"]["line"] for hit in hits} == places and {hit["against"]["line"] for hit in hits} == {2}
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert summary["files"] == {str(data): {"rows": 301, "hit": 8}, str(clean): {"rows": 2, "hit": 0}}
    assert report.to_json() == summary
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clean.jsonl", "d.jsonl", "e.jsonl", "out"]


def test_blocks_are_whole_lines(tmp_path: Path):
    path = tmp_path / "d.jsonl"
    path.write_bytes(b"one\n" + b"two is longer than a block\n" + b"3\n4\n\n" + b"no end")
    found = list(blocks([path], 4))
    assert b"".join(search_files.read(block) for block in found) == path.read_bytes()
    for block in found:
        before = path.read_bytes()[: block.start]
        assert block.first_line == before.count(b"\n") + 1 and (not before or before.endswith(b"\n"))


@pytest.mark.parametrize("fault", ["a line that is none", "Ctrl-C"])
def test_what_breaks_off_leaves_nothing(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(search_files.blocks, "__defaults__", (700,))
    data = write_many(tmp_path / "d.jsonl", {3})
    evaluations = Evaluations.read([rows(tmp_path / "e.jsonl", QUESTION)], (), 10, None)
    expected: Any = (DataError, "line 309: not JSON")
    if fault == "Ctrl-C":
        expected = (KeyboardInterrupt, None)

        def stopped(block: Any, *rest: Any) -> Any:
            if block.first_line > 200:
                raise KeyboardInterrupt
            return search(block, *rest)

        monkeypatch.setattr(search_files, "search", stopped)
    else:
        data.write_text(data.read_text() + "\n\n{]\n")
    with pytest.raises(expected[0], match=expected[1]):
        decontaminate(Data([data]), evaluations, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d.jsonl", "e.jsonl"]


def living(group: int) -> list[Path]:
    """The processes of a group, but those that have ended and that nobody has waited for."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, process_group = stat.read_text().rpartition(")")[2].split()[:3]
            found += [stat] if int(process_group) == group and state != "Z" else []
    return found


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_all_processes_and_leaves_nothing(signum: signal.Signals, tmp_path: Path):
    rows(tmp_path / "e.jsonl", QUESTION)
    with (tmp_path / "d.jsonl").open("w") as file:
        file.writelines(json.dumps({"problem": f"{i} " + "word " * 2000}) + "\n" for i in range(5000))  # 50 MB
    command = ["decontaminate", "--against", "e.jsonl", "d.jsonl", "-o", "out", "--processes", "2"]
    process = subprocess.Popen([sys.executable, "-m", "r1mega.cli", *command], cwd=tmp_path, start_new_session=True)
    while process.poll() is None and not any(file.stat().st_size for file in tmp_path.glob(".out.*/d.jsonl")):
        time.sleep(0.02)
    process.send_signal(signum)
    assert process.wait() == 128 + signum
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d.jsonl", "e.jsonl"]
    while living(process.pid):  # a helper of multiprocessing ends a moment later
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"[1]\n", "d.jsonl, line 2: a row is a JSON object, not list"),
        (b'{"note": "x"}\n', "d.jsonl, line 2: no field to look at: the row has note"),
        (b'{"problem": "\xff"}\n', "d.jsonl, line 2: byte 14, 0xff, is not UTF-8"),
    ],
)
def test_a_row_that_cannot_be_read_is_named(line: bytes, said: str, tmp_path: Path):
    data = rows(tmp_path / "d.jsonl", "x")
    data.write_bytes(data.read_bytes() + line)
    evaluations = Evaluations.read([rows(tmp_path / "e.jsonl", QUESTION)], (), 10, None)
    with pytest.raises(DataError, match=said):
        decontaminate(Data([data]), evaluations)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["r1mega", "decontaminate", *arguments])
    with pytest.raises(SystemExit) as left:
        cli.main()
    return int(left.value.code or 0)


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Listed with both places; 1 where there is a hit and nothing is filtered, 0 with a filter or without a hit."""
    monkeypatch.chdir(tmp_path)
    rows(Path("e.jsonl"), QUESTION, QUESTION)
    rows(Path("d.jsonl"), "clean", *[QUESTION] * 25)
    assert run(monkeypatch, "--against", "e.jsonl", "d.jsonl", "--processes", "1") == 1
    said = capsys.readouterr().out.splitlines()
    listed = [line for line in said if line.startswith("d.jsonl, line")]
    assert len(listed) == decontamination.SHOWN
    assert listed[0].startswith("d.jsonl, line 2, problem: 13 times 10 words of e.jsonl, line 1, problem: 'let x and")
    assert "and 5 more; --out lists all" in said and "d.jsonl: 26 rows, 25 with a hit" in said
    assert said[-1].startswith("note: 2 texts of the evaluation have 'let x and")
    assert run(monkeypatch, "--against", "e.jsonl", "d.jsonl", "--processes", "1", "-o", "out") == 0
    assert "d.jsonl: 26 rows, 25 with a hit, 1 left" in capsys.readouterr().out
    assert len(Path("out/hits.jsonl").read_text().splitlines()) == 25
    assert run(monkeypatch, "--against", "e.jsonl", "out/d.jsonl", "--processes", "1") == 0
    assert run(monkeypatch, "--against", "e.jsonl", "d.jsonl", "--processes", "1", "--boilerplate", "1") == 0
    assert capsys.readouterr().out.endswith("passed over: 13 runs of words that more than 1 texts of it have\n")
    assert run(monkeypatch, "--against", "e.jsonl", "d.jsonl", "--processes", "1", "--words", "23") == 1
    assert capsys.readouterr().out.startswith("d.jsonl, line 2, problem: the whole of e.jsonl, line 1, problem: 'let")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--against", "e.jsonl", "e.jsonl"), "e.jsonl: is searched, and searched for"),
        (("--against", "e.jsonl", "absent.jsonl"), "cannot read absent.jsonl: No such file"),
        (("--against", "absent.jsonl", "d.jsonl"), "cannot read an evaluation's questions from absent.jsonl"),
        (("--against", "e.jsonl", "d.jsonl", "-o", "made"), "made exists: choose a folder that does not"),
        (
            ("--against", "e.jsonl", "d.jsonl", "sub/d.jsonl", "-o", "out"),
            "d.jsonl: two files of out would have this",
        ),
        (("--against", "e.jsonl", "d.jsonl", "--field", "text"), "d.jsonl, line 1: no field to look at"),
        (("--against", "e.jsonl", "--against-field", "id", "d.jsonl"), "e.jsonl, line 1: no field to look at"),
        (("--against", "short.jsonl", "d.jsonl"), "short.jsonl: no prompt, and no answer of 10 words"),
    ],
)
def test_bad_input_is_one_message(
    arguments: tuple[str, ...],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    Path("made").mkdir()
    Path("sub").mkdir()
    rows(Path("e.jsonl"), QUESTION)
    rows(Path("d.jsonl"), "x")
    rows(Path("sub/d.jsonl"), "x")
    rows(Path("short.jsonl"), "42", field="answer")
    assert run(monkeypatch, *arguments, "--processes", "1") == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert not Path("out").exists()
