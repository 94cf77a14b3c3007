"""What one click does about all pictures of a kind: the remedy that they have alike, whatever it is called for each."""

from __future__ import annotations

import random
from pathlib import Path

from PIL import Image

from kohya_gui.form.presets import Presets
from kohya_gui.parts.folders import Folders
from kohya_gui.session import Session
from kohya_gui.workbench.remedies import Remedies
from trainer.pictures.remarks import read_remarks
from trainer.workbench.problems import Kind, Options, find_problems


def test_one_click_keeps_the_best_of_all_near_duplicates(tmp_path: Path) -> None:
    folder = tmp_path / "2_cat"
    folder.mkdir()
    for seed in (1, 2):
        picture = Image.frombytes("L", (8, 8), random.Random(seed).randbytes(64)).resize((512, 512))
        picture.save(folder / f"{seed}.png")
        picture.resize((480, 480)).save(folder / f"{seed}_small.png")
    session = Session(Folders([tmp_path]), Presets(tmp_path / "presets", tmp_path / "own"), patience=0.0)
    bench = session.workbench.bench(str(session.workbench.open(str(tmp_path))["token"]))
    bench.ready.wait()
    bench.take_findings(find_problems(bench.album, bench.config, Options(), None, bench.index))
    remedies = Remedies(session.workbench)
    listed = remedies.findings(bench, {})["listed"]
    assert isinstance(listed, list)
    pairs = [each for each in listed if each["kind"] == Kind.DUPLICATE.value]
    assert [each["remedies"][0]["words"] for each in pairs] == [
        "Keep 1.png and leave the other out",
        "Keep 2.png and leave the other out",
    ]
    assert {(each["remedies"][0]["for_all"], each["remedies"][0]["alike"]) for each in pairs} == {
        ("Keep the best of each and leave the others out", 2)
    }
    remedies.remedy(bench, {"number": pairs[0]["number"], "remedy": 0, "all": True})
    assert {name for name, remark in read_remarks(folder).items() if remark.skip} == {"1_small.png", "2_small.png"}
    again = remedies.findings(bench, {})["listed"]
    assert isinstance(again, list)
    assert all(each["remedies"][0]["done"] for each in again if each["kind"] == Kind.DUPLICATE.value)
