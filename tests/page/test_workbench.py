"""The workbench in a real browser: what the page says is what the files hold, and nothing else changes."""

from __future__ import annotations

import io
import json
import re
import tempfile
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import APIResponse, Browser, Page, Route, expect

from kohya_gui.workbench.workbench import MOST_OPEN
from tests.helpers.browser import NEEDS_BROWSER, PATIENCE
from tests.helpers.contrast import faint_parts
from tests.helpers.onnx_file import write_tagger
from tests.helpers.page import App, start_app

pytestmark = NEEDS_BROWSER

COUNT, KILLED = 2000, 300
TWINS = (120, 1500)
"""Numbers of two pictures that are nearly alike."""

FOLDER = "10_zwx dog"
FIRST_SEEN = """() => {
  const shown = [...document.querySelectorAll('.wb-cell:not([hidden]) img')];
  return shown.length && shown.every((each) => each.getAttribute('src') && each.complete);
}"""
"""Whether all pictures in view have come."""


@dataclass
class Bench:
    """A folder of drawn pictures, and what each of its files is expected to hold."""

    root: Path
    expected: dict[str, bytes] = field(default_factory=dict)
    failed: int = 0
    """Tests that had failed when the files were last known to be as expected."""

    @property
    def folder(self) -> Path:
        return self.root / FOLDER

    def caption(self, number: int) -> str:
        return f"{FOLDER}/p{number:04}.txt"

    def check(self) -> None:
        """See that every file is there and holds what is expected, and that there is no other."""
        found = {
            path.relative_to(self.root).as_posix(): path.read_bytes()
            for path in self.root.rglob("*")
            if path.is_file() and ".caption_changes" not in path.parts
        }
        assert found.keys() ^ self.expected.keys() == set()
        assert [name for name, content in found.items() if content != self.expected[name]] == []

    def restore(self) -> None:
        """Put back what a test that failed left otherwise, so that those after it are judged by what they do."""
        for path in self.root.rglob("*"):
            if path.is_file() and path.relative_to(self.root).as_posix() not in self.expected:
                path.unlink()
        for name, content in self.expected.items():
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.is_file() or path.read_bytes() != content:
                path.write_bytes(content)


def draw(bench: Bench, count: int) -> None:
    """Draw pictures of random squares, captions with three tags, and one picture a second time with a speck on it."""
    random = np.random.default_rng(7)
    twin = np.zeros((0, 0, 3), np.uint8)
    bench.folder.mkdir(parents=True)
    for number in range(count):
        pixels = random.integers(0, 256, (8, 8, 3), dtype=np.uint8).repeat(8, axis=0).repeat(8, axis=1)
        if number == TWINS[0]:
            twin = pixels.copy()
            twin[0, 0] = 0
        elif number == TWINS[1]:
            pixels = twin
        content = io.BytesIO()
        Image.fromarray(pixels).save(content, "PNG", compress_level=1)
        bench.expected[f"{FOLDER}/p{number:04}.png"] = content.getvalue()
        bench.expected[bench.caption(number)] = f"zwx dog, tag{number % 40}, grass".encode()
    for name, content_ in bench.expected.items():
        (bench.root / name).write_bytes(content_)


@pytest.fixture(scope="module")
def bench(app: App) -> Bench:
    drawn = Bench(Path(tempfile.mkdtemp(prefix="workbench-", dir=app.folder)))  # a module's fixture may be made twice
    draw(drawn, COUNT)
    return drawn


@pytest.fixture(scope="module")
def shared(app: App, browser: Browser) -> Iterator[Page]:
    """One tab for most tests: to open the page is dear."""
    page = browser.new_page()
    page.goto(app.url)
    page.click("[data-to-place=pictures]")
    expect(page.locator("#wb-path")).to_be_visible()
    page.wait_for_function("() => BENCH.there")
    yield page
    page.close()


@pytest.fixture
def place(shared: Page, bench: Bench, request: pytest.FixtureRequest) -> Page:
    """The workbench with the folder opened anew, as someone does who types its path.

    What the test before left where it failed is put right: a dialog, a large picture, files.
    """
    if request.session.testsfailed != bench.failed:
        bench.restore()
        bench.failed = request.session.testsfailed
    shared.evaluate("document.querySelectorAll('dialog[open]').forEach((each) => each.close())")
    if not shared.locator("#wb-path").is_visible():
        shared.reload()
        shared.click("[data-to-place=pictures]")
        shared.wait_for_function("() => BENCH.there")
    before = shared.evaluate("document.querySelector('.wb-told').replaceChildren(), BENCH.token")
    shared.fill("#wb-path", str(bench.root))
    shared.press("#wb-path", "Enter")
    shared.wait_for_function("(before) => BENCH.token && BENCH.token !== before && BENCH.about.complete", arg=before)
    expect(shared.locator(".wb-count")).to_have_text(re.compile(rf"^{len(pictures(bench)):,} pictures$"))
    shared.focus(".wb-grid")
    return shared


def test_what_is_typed_stays_however_late_the_forms_folder_comes(app: App, page: Page, bench: Bench) -> None:
    held: list[Route] = []
    page.route("**/workbench/state", lambda route: held.append(route))
    page.goto(app.url)
    page.click("[data-to-place=pictures]")
    page.fill("#wb-path", str(bench.root))
    page.wait_for_function("() => BENCH.there")
    with page.expect_response("**/workbench/*/view"):
        held[0].continue_()
    expect(page.locator("#wb-path")).to_have_value(str(bench.root))
    page.press("#wb-path", "Enter")
    expect(page.locator(".wb-count")).to_have_text(f"{len(pictures(bench)):,} pictures")


def pictures(bench: Bench) -> list[str]:
    return [name for name in bench.expected if name.endswith(".png") and "/masks/" not in name]


def test_ten_captions_are_written_by_keyboard_alone(place: Page, bench: Bench) -> None:
    asked: list[str] = []
    place.wait_for_function(FIRST_SEEN)
    place.on("request", lambda request: asked.append(request.url) if "/small/" in request.url else None)
    place.keyboard.press("End")  # the last pictures come into view, and those between are passed over
    expect(place.locator(".wb-cell:not([hidden]) img[src]").first).to_be_visible()
    seen = place.locator(".wb-cell:not([hidden])").count()
    assert 0 < len(set(asked)) <= seen < COUNT / 4
    place.keyboard.press("Home")
    place.keyboard.press("Enter")
    for number in range(10):
        expect(place.locator(".wb-name")).to_have_text(f"p{number:04}.png")
        place.keyboard.type(f", written {number}")
        place.keyboard.press("Enter")
        bench.expected[bench.caption(number)] += f", written {number}".encode()
    expect(place.locator(".wb-name")).to_have_text("p0010.png")
    bench.check()
    place.keyboard.press("Escape")
    expect(place.locator(".wb-grid")).to_be_focused()
    written = bench.expected[bench.caption(9)]
    for key, words, content in (
        ("Control+z", "Taken back", b"zwx dog, tag9, grass"),
        ("Control+Shift+z", "Done again", written),
        ("Control+z", "Taken back", b"zwx dog, tag9, grass"),
    ):
        place.keyboard.press(key)
        expect(place.locator(".wb-told")).to_contain_text(words)
        assert (bench.root / bench.caption(9)).read_bytes() == content
    expect(place.locator(".wb-redo")).to_be_enabled()
    bench.expected[bench.caption(9)] = b"zwx dog, tag9, grass"
    bench.check()


def test_an_old_answer_does_not_change_what_is_taken_back(place: Page, bench: Bench) -> None:
    held: list[tuple[Route, APIResponse]] = []
    place.route("**/workbench/*/about", lambda route: held.append((route, route.fetch())))
    for _ in range(50):
        place.keyboard.press("ArrowRight")
    place.keyboard.press("Enter")
    expect(place.locator(".wb-name")).to_have_text("p0050.png")
    with place.expect_request("**/workbench/*/about"):
        place.keyboard.type(", first")
        place.keyboard.press("Enter")
    while not held:
        place.wait_for_timeout(20)
    place.keyboard.type(", second")
    place.keyboard.press("Enter")
    expect(place.locator(".wb-told")).to_contain_text("Saved p0051.png")
    route, answer = held.pop(0)
    with place.expect_response("**/workbench/*/about"):
        route.fulfill(response=answer)
    place.keyboard.press("Escape")
    place.keyboard.press("Control+z")
    expect(place.locator(".wb-told")).to_contain_text("Taken back")
    place.unroute_all(behavior="ignoreErrors")
    bench.expected[bench.caption(50)] += b", first"
    bench.check()


def test_a_completion_is_taken_and_a_caption_changed_elsewhere_is_not_lost(place: Page, bench: Bench) -> None:
    for _ in range(20):
        place.keyboard.press("ArrowRight")
    place.keyboard.press("Enter")
    expect(place.locator(".wb-name")).to_have_text("p0020.png")
    place.keyboard.type(", tag3")
    expect(place.locator(".wb-words li").first).to_have_text(re.compile("^tag3"))
    place.keyboard.press("ArrowDown")
    place.keyboard.press("Enter")
    expect(place.locator(".wb-caption")).to_have_value(re.compile("^zwx dog, tag20, grass, tag3"))
    (bench.root / bench.caption(20)).write_text("from another program, grass")
    place.evaluate("BENCH.of('rows', {ids: [20]}).then((found) => BENCH.keep(found.rows))")  # the grid asks at any time
    place.keyboard.press("Enter")
    expect(place.locator(".wb-told")).to_contain_text("changed elsewhere")
    assert (bench.root / bench.caption(20)).read_text() == "from another program, grass"
    expect(place.locator(".wb-caption")).to_have_value(re.compile("^zwx dog"))  # what was typed is not lost either
    place.fill(".wb-caption", "from another program, grass")
    place.keyboard.press("Escape")
    bench.expected[bench.caption(20)] = b"from another program, grass"
    bench.check()


def let_close(app: App, place: Page, client: httpx.Client) -> None:
    """Open so many folders that the program closes the one that the page shows."""
    few = app.folder / "few"
    few.mkdir(exist_ok=True)
    Image.new("RGB", (64, 64)).save(few / "one.png")
    token = place.evaluate("BENCH.token")
    while client.post(f"/workbench/{token}/about").status_code == 200:  # a thumbnail asked for late keeps it open
        for _ in range(MOST_OPEN):
            opened(client, few)


def test_a_look_at_counts_that_opens_a_folder_again_says_so(
    app: App, place: Page, bench: Bench, client: httpx.Client
) -> None:
    place.evaluate("clearTimeout(BENCH.counting)")
    let_close(app, place, client)
    place.evaluate("BENCH.of('about', {}, true).catch(() => null)")
    expect(place.locator(".wb-told")).to_contain_text("This folder was opened again.")
    bench.check()


def test_a_folder_that_the_program_closed_is_opened_again_with_what_was_typed(
    app: App, place: Page, bench: Bench, client: httpx.Client
) -> None:
    for _ in range(30):
        place.keyboard.press("ArrowRight")
    place.keyboard.press("Enter")
    expect(place.locator(".wb-name")).to_have_text("p0030.png")
    with place.expect_response(lambda answer: "kept" in (answer.request.post_data or "")):
        place.keyboard.insert_text(", kept")  # what is asked for its completion keeps the folder open
    place.evaluate("clearTimeout(BENCH.counting)")  # counts asked for late would find it closed before the caption does
    let_close(app, place, client)
    place.keyboard.press("Enter")
    expect(place.locator(".wb-told")).to_contain_text("This folder was opened again")
    expect(place.locator(".wb-caption")).to_have_value("zwx dog, tag30, grass, kept")
    place.keyboard.press("Enter")
    expect(place.locator(".wb-name")).to_have_text("p0031.png")
    bench.expected[bench.caption(30)] += b", kept"
    bench.check()
    place.keyboard.press("Escape")


def test_a_tag_is_replaced_in_all_as_the_preview_said_and_taken_back(place: Page, bench: Bench) -> None:
    before = dict(bench.expected)
    place.keyboard.press("r")
    dialog = place.get_by_role("dialog", name="Change captions")
    dialog.locator("select[name=kind]").select_option("rename")
    dialog.locator("input[name=find]").fill("grass")
    dialog.locator("input[name=with]").fill("meadow")
    changed = [name for name, content in before.items() if name.endswith(".txt")]
    assert len(changed) == COUNT and all(b"grass" in before[name] for name in changed)
    apply = dialog.get_by_role("button", name=f"Apply to {len(changed):,} captions")
    expect(apply).to_be_enabled()
    expect(dialog.locator(".wb-change-row ins").first).to_have_text("meadow")
    bench.check()  # a preview writes nothing
    apply.click()
    expect(place.locator(".wb-told")).to_contain_text(f"{len(changed):,} captions", timeout=PATIENCE)
    for name in changed:
        bench.expected[name] = before[name].replace(b"grass", b"meadow")
    bench.check()
    expect(place.locator(".wb-tags")).to_contain_text(f"meadow{COUNT:,}")
    expect(place.locator(".wb-tags")).not_to_contain_text("grass")
    place.locator(".wb-told").get_by_role("button", name="Undo").click()
    expect(place.locator(".wb-told")).to_contain_text("Taken back", timeout=PATIENCE)
    bench.expected.update(before)
    bench.check()


def test_twins_are_found_and_one_is_left_out(place: Page, bench: Bench) -> None:
    place.keyboard.press("p")
    dialog = place.get_by_role("dialog", name="What is wrong with my pictures")
    dialog.get_by_role("button", name="Look for problems").click()
    found = dialog.get_by_role("region", name="Near-duplicates").locator(".wb-finding")
    expect(found).to_have_count(1, timeout=PATIENCE)
    expect(found.locator("figcaption")).to_have_text([f"p{number:04}.png" for number in TWINS])
    found.get_by_role("button", name=re.compile("leave the other out")).click()
    expect(found).to_contain_text("done")
    said = (bench.folder / "pictures.json").read_bytes()
    assert [name for name, remark in json.loads(said).items() if isinstance(remark, dict) and remark.get("skip")] == [
        f"p{TWINS[1]:04}.png"
    ]
    bench.expected[f"{FOLDER}/pictures.json"] = said
    bench.check()
    place.keyboard.press("Escape")
    expect(place.locator(".wb-row", has_text="left out")).to_contain_text("1")


def test_a_zip_is_taken_in(place: Page, bench: Bench, tmp_path: Path) -> None:
    content = io.BytesIO()
    Image.new("RGB", (64, 64), "navy").save(content, "PNG")
    archive = tmp_path / "more.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr("z_new.png", content.getvalue())
        packed.writestr("z_new.txt", "zwx dog, sea")
        packed.writestr("../evil.png", content.getvalue())
    place.keyboard.press("u")
    dialog = place.get_by_role("dialog", name="Add pictures")
    dialog.locator("input[type=file]").set_input_files(archive)
    dialog.get_by_role("button", name="Add", exact=True).click()
    expect(place.locator(".wb-count")).to_have_text(f"{COUNT + 1:,} pictures")
    bench.expected[f"{FOLDER}/z_new.png"] = content.getvalue()
    bench.expected[f"{FOLDER}/z_new.txt"] = b"zwx dog, sea"
    bench.check()
    assert not (bench.root / "evil.png").exists()


def test_a_tagger_shows_what_it_would_write_and_writes_it_when_told(place: Page, bench: Bench) -> None:
    pytest.importorskip("onnxruntime")
    model = write_tagger(bench.root.parent / "tagger")
    for _ in range(3):
        place.keyboard.press("Space")
        place.keyboard.press("ArrowRight")
    place.keyboard.press("m")
    dialog = place.get_by_role("dialog", name="Captions by a model")
    dialog.locator("input[name=model]").fill(str(model))
    dialog.locator("select[name=mode]").select_option("append")
    dialog.locator("input[name=general_threshold]").fill("0")
    dialog.get_by_role("button", name="Write captions, to look at").click()
    apply = dialog.get_by_role("button", name="Apply to 3 captions", exact=True)
    expect(apply).to_be_enabled(timeout=PATIENCE)
    expect(dialog.locator(".wb-change-row")).to_have_count(3)
    shown = {
        row.locator("b").inner_text(): row.locator(".new").inner_text()
        for row in dialog.locator(".wb-change-row").all()
    }
    bench.check()  # a preview writes nothing
    place.reload()
    expect(place.locator(".wb-told")).to_contain_text("3 captions to look at, none of them written")
    place.get_by_role("button", name="Look at them").click()
    expect(dialog.locator(".wb-change-row")).to_have_count(3)
    apply.click()
    expect(place.locator(".wb-told")).to_contain_text("3 captions written", timeout=PATIENCE)
    for name, text in shown.items():
        bench.expected[f"{FOLDER}/{Path(name).stem}.txt"] = text.encode()
    bench.check()


def test_a_mask_is_painted_by_keyboard_and_a_folder_renamed_and_named_back(place: Page, bench: Bench) -> None:
    place.keyboard.press("Enter")
    expect(place.locator(".wb-name")).to_have_text("p0000.png")
    place.get_by_role("button", name="Mask", exact=True).click()
    place.locator(".wb-picture").focus()
    place.locator(".wb-where").click()
    place.keyboard.press(" ")
    place.get_by_role("button", name="Keep this mask").click()
    expect(place.get_by_role("button", name="Change the mask")).to_be_visible()
    mask = np.asarray(Image.open(bench.folder / "masks" / "p0000.png.png"))
    assert (mask.shape, mask[32, 32] < 128, mask[0, 0] > 250) == ((64, 64), True, True)
    for name in ("masks/p0000.png.png", "pictures.json"):
        bench.expected[f"{FOLDER}/{name}"] = (bench.folder / name).read_bytes()
    place.keyboard.press("Escape")
    place.get_by_role("button", name=f"Change repeats and class of {FOLDER}").click()
    dialog = place.get_by_role("dialog", name="Repeats and class")
    dialog.get_by_label("Repeats").fill("3")
    dialog.get_by_role("button", name="Rename").click()
    expect(dialog).to_contain_text("will be named 3_zwx dog")
    assert bench.folder.is_dir()
    dialog.get_by_role("button", name="Yes, rename it").click()
    expect(place.locator(".wb-told")).to_contain_text("is 3_zwx dog now")
    assert [path.name for path in bench.root.iterdir()] == ["3_zwx dog"]
    place.locator(".wb-told").get_by_role("button", name="Undo").click()
    expect(place.locator(".wb-told")).to_contain_text("Taken back")
    bench.check()


# --- how it looks ---------------------------------------------------------------------------------------------------

DIALOGS = {
    "b": "Change captions",
    "p": "What is wrong with my pictures",
    "u": "Add pictures",
    "m": "Captions by a model",
}


def test_all_can_be_read_and_all_edges_are_seen_in_light_and_dark(place: Page) -> None:
    found: dict[str, list[str]] = {}

    def look(where: str, at: str = "#workbench") -> None:
        count, faint = faint_parts(place.locator(at))
        assert count > 1, where
        found[where] = faint

    place.add_style_tag(content="* { transition: none !important }")  # colours on their way are none
    before = place.evaluate("document.body.classList.contains('dark')")
    for scheme in ("light", "dark"):
        place.evaluate(f"document.body.classList.toggle('dark', {str(scheme == 'dark').lower()})")
        place.keyboard.press("Space")
        place.evaluate("BENCH.tell('It was said.', {turn: 'undo'})")
        place.evaluate("BENCH.unfinished([{number: 0, title: 'x', undoing: false, done: 1, pending: 2, foreign: 3}])")
        look(f"{scheme}, grid")
        place.evaluate("BENCH.tell('It was refused.', {refused: true})")
        look(f"{scheme}, refused", ".wb-told")
        for key, name in {**DIALOGS, "?": "Keys"}.items():
            place.keyboard.press(key)
            expect(place.get_by_role("dialog", name=name)).to_be_visible()
            if key == "b":
                place.get_by_role("dialog").locator("input[name=find]").fill("dog")
                place.get_by_role("dialog").locator("input[name=with]").fill("cat")
                expect(place.locator(".wb-change-row ins").first).to_be_visible()
            look(f"{scheme}, {name}", "dialog[open]")
            place.keyboard.press("Escape")
        place.keyboard.press("Enter")
        place.keyboard.type(", tag")
        expect(place.locator(".wb-words li").first).to_be_visible()
        place.keyboard.press("ArrowDown")
        look(f"{scheme}, one picture", ".wb-picture")
        place.evaluate("PICTURE.field.value = PICTURE.row.caption")
        place.keyboard.press("Escape")
        place.keyboard.press("Escape")
        place.keyboard.press("Space")
    place.evaluate(f"BENCH.again(); document.body.classList.toggle('dark', {str(before).lower()})")
    assert {where: faint for where, faint in found.items() if faint} == {}


# --- without a browser ----------------------------------------------------------------------------------------------


@pytest.fixture
def client(app: App) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=app.url, timeout=60) as client:
        yield client


def opened(client: httpx.Client, path: Path) -> str:
    answer = client.post("/workbench/open", json={"path": str(path)})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["token"])


def test_nothing_outside_is_shown_or_written(
    client: httpx.Client, app: App, tmp_path_factory: pytest.TempPathFactory
) -> None:
    outside = tmp_path_factory.mktemp("outside")
    Image.new("RGB", (64, 64), "red").save(outside / "secret.png")
    (outside / "secret.txt").write_text("a secret")
    for path in (outside, app.folder / ".." / outside.name, Path("/")):
        answer = client.post("/workbench/open", json={"path": str(path)})
        assert (answer.status_code, "outside the folders" in answer.text) == (400, True)
    inside = app.folder / "linked"
    inside.mkdir()
    Image.new("RGB", (64, 64), "green").save(inside / "plain.png")
    (inside / "link.png").symlink_to(outside / "secret.png")
    (inside / "plain.txt").symlink_to(outside / "secret.txt")
    (inside / "other.png").write_bytes((inside / "plain.png").read_bytes())
    token = opened(client, inside)
    shown = client.post(f"/workbench/{token}/view", json={}).json()["ids"]
    rows = client.post(f"/workbench/{token}/rows", json={"ids": shown}).json()["rows"]
    assert [row["name"] for row in rows] == ["other.png"]
    for number in {0, 1, 2} - set(shown):
        assert client.get(f"/workbench/{token}/small/{number}").status_code == 404
        assert client.post(f"/workbench/{token}/rows", json={"ids": [number]}).status_code == 400
        said = {"id": number, "text": "mine", "was": ""}
        assert client.post(f"/workbench/{token}/caption", json=said).status_code == 400
    assert (outside / "secret.txt").read_text() == "a secret"
    for into in (outside, inside / ".hidden", ""):
        sent = client.post("/workbench/upload", params={"into": str(into), "name": "a.png"}, content=b"x")
        assert sent.status_code == 400, sent.text
    assert sorted(path.name for path in outside.iterdir()) == ["secret.png", "secret.txt"]


@pytest.mark.parametrize("path", ["/workbench/state", "/workbench/open", "/workbench/x/view", "/workbench/upload"])
def test_other_pages_are_refused(client: httpx.Client, path: str) -> None:
    assert client.post(path, json={}, headers={"Origin": "https://evil.example"}).status_code == 403


ACTS = (
    "view",
    "rows",
    "caption",
    "preview",
    "plan",
    "apply",
    "remark",
    "settle",
    "use",
    "search",
    "findings",
    "named",
    "tags",
    "remedy",
    "captioned",
)
NONSENSE: tuple[object, ...] = (
    [],
    "x",
    {"ids": [-1, True, "a", 10**9]},
    {"id": None, "text": 7},
    {"kind": {}, "trigger": [], "model": "../x", "mode": "append"},
)


def test_nonsense_is_refused_and_is_no_fault(client: httpx.Client, app: App, bench: Bench) -> None:
    token = opened(client, bench.root)
    for act in (*ACTS, "captioned", "folder", "nothing"):
        for said in NONSENSE:
            assert client.post(f"/workbench/{token}/{act}", json=said).status_code in (200, 400), (act, said)
        assert client.post(f"/workbench/{token}/{act}", content=b"[" * 100_000).status_code == 400
    bench.check()
    assert "Traceback" not in app.log.read_text(errors="replace")


def test_a_kill_in_the_middle_leaves_each_caption_whole_and_the_next_program_says_so(app: App) -> None:
    folder = Path(tempfile.mkdtemp(prefix="killed-", dir=app.folder))
    bench = Bench(folder / "pictures")
    draw(bench, KILLED)
    killed = start_app(folder, folder / "own")
    with httpx.Client(base_url=killed.url, timeout=60) as client:
        token = opened(client, bench.root)
        ids = client.post(f"/workbench/{token}/view", json={}).json()["ids"]
        change = {"kind": "suffix", "text": ", the end", "ids": ids}
        plan = client.post(f"/workbench/{token}/preview", json=change).json()
        assert plan["changes"] == KILLED
        client.post(f"/workbench/{token}/apply", json={"plan": plan["plan"]})
        until = time.monotonic() + 60
        while client.post("/workbench/errand").json()["done"] < 20 and time.monotonic() < until:
            time.sleep(0.005)
    killed.process.kill()
    killed.process.wait()
    texts = [(bench.root / bench.caption(number)).read_bytes() for number in range(KILLED)]
    old = [bench.expected[bench.caption(number)] for number in range(KILLED)]
    new = [each + b", the end" for each in old]
    assert all(text in (one, other) for text, one, other in zip(texts, old, new, strict=True))
    changed = sum(text == other for text, other in zip(texts, new, strict=True))
    assert 0 < changed < KILLED
    with httpx.Client(base_url=app.url, timeout=60) as client:
        about = client.post("/workbench/open", json={"path": str(bench.root)}).json()
        (cut_off,) = about["unfinished"]
        assert (cut_off["done"], cut_off["pending"]) == (changed, KILLED - changed)
        told = client.post(f"/workbench/{about['token']}/settle", json={"number": 0, "back": True}).json()
        assert told["unfinished"] == []
    bench.check()
