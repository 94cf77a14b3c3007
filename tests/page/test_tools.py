"""The tab of the tools: each from its form in a real browser, on the demo's files; and what a form comes to."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch
from playwright.sync_api import Page, expect
from safetensors.torch import load_file, save_file

from kohya_gui.parts.folders import Folders
from kohya_gui.parts.served import Pictures
from kohya_gui.tools import state
from kohya_gui.tools.forms import Forms, markup, on_page
from kohya_gui.tools.worker import Work, Worker
from tests.helpers.browser import NEEDS_BROWSER, PATIENCE
from tests.helpers.page import PROJECT, App
from trainer.families import FAMILIES
from trainer.ground.errors import ConfigError, StateError
from trainer.settings.wording import PROGRAM
from trainer.tools import TOOLS, Desk
from trainer.tools.verify import chart

DEMO = PROJECT / "demo" / "model.safetensors"


def lora(path: Path, seed: int = 0) -> Path:
    """A LoRA for the demo's model."""
    from trainer.families import recognise

    seen = recognise(DEMO)
    targets = FAMILIES[seen.family].targets(seen.configs, conv=False)
    generator, tensors = torch.Generator().manual_seed(seed), {}
    for each in targets:
        kernel = each.kernel or ()
        down = torch.randn(4, each.in_features, *kernel, generator=generator)
        up = torch.randn(each.out_features, 4, *(1,) * len(kernel), generator=generator) * 0.02
        tensors |= {f"{each.name}.lora_down.weight": down, f"{each.name}.lora_up.weight": up}
        tensors[f"{each.name}.alpha"] = torch.tensor(2.0)
    save_file(tensors, path, metadata={"ss_base_model_version": "sd_v1", "ss_output_name": path.stem})
    return path


def forms(folder: Path, **raw: object) -> Forms:
    made = Forms(Folders([folder]))
    for key, value in raw.items():
        made.edit(key.replace("__", "-"), value)
    return made


def test_every_tool_of_the_page_has_its_form_from_its_declaration() -> None:
    text = markup()
    for tool in on_page().values():
        assert f'data-run="{tool.name}"' in text and tool.title
        assert f"<code>{PROGRAM} {tool.name}</code>" in text, "as everywhere else"
        for key, setting in tool.settings.items():
            assert f'data-field="{tool.name}-{key}"' in text and setting.help
    assert {"merge", "extract", "resize", "convert", "verify", "metadata", "compare", "inspect"} <= on_page().keys()


def test_a_form_comes_to_arguments(tmp_path: Path) -> None:
    for name in ("a", "b"):
        lora(tmp_path / f"{name}.safetensors")
    two = f'"{tmp_path}/a.safetensors"\n {tmp_path}/x/../b.safetensors \n'
    filled = forms(tmp_path, merge__models=two, merge__ratios="0.5, 1", merge__new_rank="8", merge__save_to="")
    with pytest.raises(ConfigError, match="save_to: is empty"):
        filled.arguments(TOOLS["merge"])
    filled.edit("merge-save_to", str(tmp_path / "c.safetensors"))
    arguments = filled.arguments(TOOLS["merge"])
    # What was judged is what is opened: one path, without quotes and detours.
    assert arguments.models == (str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors"))
    assert (arguments.ratios, arguments.new_rank, arguments.clamp_quantile) == ((0.5, 1), 8, 1.0)
    shown = filled.payload()
    assert "merge-method" not in shown["hidden"]
    filled.edit("merge-sd_model", str(tmp_path / "model.safetensors"))
    assert {"merge-method", "merge-new_rank", "merge-base_model"} <= set(filled.payload()["hidden"])
    # What is not shown is not told.
    assert filled.arguments(TOOLS["merge"]).new_rank is None


@pytest.mark.parametrize("key", ["models", "sd_model", "save_to", "base_model"])
def test_no_path_leads_out_of_the_allowed_folders(tmp_path: Path, key: str) -> None:
    inside, outside = tmp_path / "in", tmp_path / "out"
    for folder in (inside, outside):
        folder.mkdir()
    (inside / "link").symlink_to(outside)
    for wrong in (
        outside / "a.safetensors",
        inside / ".." / "out" / "a.safetensors",
        inside / "link" / "a.safetensors",
    ):
        given: dict[str, object] = dict.fromkeys(("merge__models", "merge__save_to"), str(inside / "a.safetensors"))
        filled = forms(inside, **{**given, f"merge__{key}": str(wrong)})
        with pytest.raises(ConfigError, match="outside the folders") as refused:
            filled.arguments(TOOLS["merge"])
        assert [problem.key for problem in refused.value.problems] == [key]


def test_fields_that_are_not_there_are_nobodys(tmp_path: Path) -> None:
    made = forms(tmp_path)
    before = made.payload()
    for key, value in (
        ("merge", "x"),
        ("merge-nothing", "x"),
        (None, "x"),
        ("merge-models", ["x"]),
        ("train-file", "x"),
    ):
        made.edit(key, value)
    assert made.payload() == before


def test_one_tool_at_a_time_and_a_fault_of_the_program_shows(tmp_path: Path) -> None:
    import threading

    from trainer.tools.verify import Verify, VerifyArguments

    go_on = threading.Event()

    class Slow(Verify):
        def run(self, arguments: VerifyArguments, desk: Desk) -> int:
            desk.say("one\ntwo")
            go_on.wait(300)
            raise LookupError("a fault")

    class Watched(Worker):
        busy_when_ended: bool | None = None

        def _set(self, work: Work) -> None:
            super()._set(work)
            if work.status == "broken":
                self.busy_when_ended = self.busy  # the page may show it now, and the next click come

    worker, noise, seen = Watched(), threading.excepthook, []
    threading.excepthook = lambda about: None
    try:
        worker.start(Slow(), None, seen.append)
        with pytest.raises(StateError, match="at work"):
            worker.start(Slow(), None, seen.append)
        go_on.set()
        worker.join(300)
    finally:
        threading.excepthook = noise
    assert (worker.busy, worker.work.status, worker.work.lines) == (False, "broken", ("one", "two"))
    assert worker.busy_when_ended is False
    assert seen == [worker.work]


def test_a_chart_of_the_terminal_has_bars_in_the_page() -> None:
    lines = (
        *chart({"unet mid_block": 2.0, "unet <up>": 0.5, "unet nothing": 0.0}),
        "Largest difference of a number: 0.1234",
    )
    text = state.markup(Work(TOOLS["verify"], status="finished", lines=lines), Pictures())
    assert re.findall(r'<span class="row"><span>(.*?)</span><b>(.*?)</b><span><i style="width:(\d+)%">', text) == [
        ("unet mid_block", "2.0000", "100"),
        ("unet &lt;up&gt;", "0.5000", "26"),
        ("unet nothing", "0.0000", "0"),
    ]
    assert "#" not in text and "Largest difference of a number: 0.1234\n" in text


class TestInTheBrowser:
    pytestmark = NEEDS_BROWSER

    @pytest.fixture
    def files(self, app: App) -> Path:
        folder = app.folder / "tools"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for number, name in enumerate("ab"):
            lora(folder / f"{name}.safetensors", number)
        shutil.copyfile(DEMO, folder / "model.safetensors")
        return folder

    def begin(self, tab: Page, tool: str, values: dict[str, str], says: str = "Done") -> None:
        """Fill a form, begin, and wait for how it ends."""
        form = tab.locator(f"#tool-{tool}")
        if form.get_attribute("open") != "":
            form.locator("summary").click()
        for key, text in values.items():
            field = tab.locator(f"#{tool}-{key}")
            if field.evaluate("each => each.tagName") == "SELECT":
                field.select_option(text)
            else:
                field.fill(text)
        form.locator("[data-run]").click()
        title = TOOLS[tool].title
        expect(tab.locator("#tool-work h3")).to_contain_text(re.compile(rf"{title}\s+{says}"), timeout=PATIENCE)

    def test_each_tool_on_the_demos_files(self, app: App, tab: Page, files: Path) -> None:
        tab.get_by_role("tab", name="Tools").click()
        a, b, model = (str(files / f"{name}.safetensors") for name in ("a", "b", "model"))
        work = tab.locator("#tool-work")

        self.begin(tab, "merge", {"models": f"{a}\n{b}", "ratios": "1 0.5", "save_to": f"{files}/ab.safetensors"})
        expect(work).to_contain_text("ranks up to 8")
        with tab.expect_download() as download:
            work.get_by_text("Download ab.safetensors").click()
        assert load_file(download.value.path()).keys() == load_file(files / "ab.safetensors").keys()

        into = {"models": a, "ratios": "", "sd_model": model, "save_to": f"{files}/merged.safetensors"}
        self.begin(tab, "merge", into)
        expect(work).to_contain_text("weights of model.safetensors changed")
        pair = {"model_org": model, "model_tuned": f"{files}/merged.safetensors", "min_diff": "0"}
        self.begin(tab, "extract", {**pair, "save_to": f"{files}/out.safetensors", "dim": "4"})
        expect(work).to_contain_text("extracted from merged.safetensors - model.safetensors")
        self.begin(
            tab, "resize", {"model": f"{files}/ab.safetensors", "save_to": f"{files}/r.safetensors", "new_rank": "3"}
        )
        expect(work).to_contain_text("ranks and how many layers have them: 3")
        self.begin(tab, "convert", {"model": a, "save_to": f"{files}/d.safetensors", "to": "diffusers"})
        expect(work).to_contain_text("kohya keys became diffusers keys")
        self.begin(tab, "verify", {"file": a})
        expect(work).to_contain_text("No fault found.")
        self.begin(tab, "metadata", {"file": a, "metadata_title": "Mine", "save_to": f"{files}/t.safetensors"})
        expect(work).to_contain_text("with modelspec.title")
        self.begin(tab, "compare", {"first": a, "second": b})
        expect(work).to_contain_text("Cosine between them")
        self.begin(tab, "inspect", {"file": model})
        expect(work).to_contain_text('"kind": "checkpoint"')

    def test_what_is_wrong_stands_at_its_field(self, app: App, tab: Page, files: Path) -> None:
        tab.get_by_role("tab", name="Tools").click()
        here = {"models": f"{files}/a.safetensors", "ratios": "", "sd_model": f"{files}/b.safetensors"}
        self.begin(tab, "merge", {**here, "save_to": str(files / "new.safetensors")}, "Refused")
        expect(tab.locator("[data-field=merge-sd_model] .problem")).to_contain_text("LoRA file, not a base model")
        expect(tab.locator("#tool-work .problem-box p")).to_have_count(1)
        self.begin(tab, "merge", {"sd_model": "/etc/passwd"}, "Refused")
        expect(tab.locator("[data-field=merge-sd_model] .problem")).to_contain_text("outside the folders")
        assert not (files / "new.safetensors").exists()

    def test_a_path_is_picked_in_the_dialog(self, app: App, tab: Page, files: Path) -> None:
        tab.get_by_role("tab", name="Tools").click()
        tab.locator("#tool-merge summary").click()
        tab.fill("#merge-models", str(files / "a.safetensors"))
        tab.locator("[data-browse=merge-models]").click()
        tab.locator("#dialog .entries").get_by_text("b.safetensors", exact=True).click()
        expect(tab.locator("#merge-models")).to_have_value(f"{files}/a.safetensors\n{files}/b.safetensors")

    def test_a_phone_shows_every_tab(self, app: App, tab: Page) -> None:
        tab.set_viewport_size({"width": 390, "height": 844})
        tab.locator('button[data-side="form"]').click()
        for name in ("Basic", "Datasets", "Advanced", "Tools"):
            expect(tab.locator("#form-tabs").get_by_role("tab", name=name)).to_be_visible()
