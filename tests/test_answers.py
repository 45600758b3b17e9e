"""The script that compares two checkouts' answers: what it writes is the same each time, and what it says of it."""

import json

import answers


def test_what_it_writes_does_not_change(monkeypatch):
    monkeypatch.setattr(answers, "SPECS", ("wanda", "wanda+push", "fw(steps=20)", "wanda+refit", "bnb(nodes=5)"))
    monkeypatch.setattr(answers, "SMALL", ())
    first, second = (list(answers.answers(["mini/n016.gate_proj*"])) for _ in range(2))
    assert first == second
    by = {answer["spec"]: answer for answer in json.loads(json.dumps(first))}
    assert "wanda+push" in by["wanda+push"]["refused"]
    assert by["wanda"]["mask"] != by["fw(steps=20)"]["mask"]
    assert by["wanda"]["weights"] is by["wanda"]["proof"] is None
    assert by["wanda+refit"]["weights"]
    assert len(by["bnb(nodes=5)"]["bounds of rows, as proved"]) == 4
    assert float.fromhex(by["fw(steps=20)"]["bound, as proved"]) < float.fromhex(by["fw(steps=20)"]["error"])


def test_what_it_says(tmp_path):
    def written(name, *rows):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    same = {"problem": "a", "spec": "wanda", "mask": "1"}
    bound = {"problem": "a", "spec": "fw", "mask": "2", "bound, as proved": (1.0).hex()}
    before = written("before", same, bound, {"problem": "b", "spec": "fw"})
    after = written("after", same, bound | {"bound, as proved": (1.5).hex()})
    assert answers.compare(before, after).splitlines() == [
        "2 answers compared, 1 in one file only",
        "1 are the same",
        "      1 wanda",
        "1 differ in bound, as proved",
        "      1 fw",
        "    such as fw on a",
        "        bound, as proved: 0x1.0000000000000p+0 -> 0x1.8000000000000p+0",
        "    the bounds move by 0.5 to 0.5 of themselves",
    ]
