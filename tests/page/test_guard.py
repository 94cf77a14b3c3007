"""What the page refuses, asked through every route that its server has, as a hostile page or program would."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from kohya_gui.shell.guard import is_closed
from tests.helpers.page import PROJECT, App, start_app, trigger, wait_until_ready
from trainer.config import known_settings

PASSWORD = "correct horse"
SECRET = "a secret that the page may not tell"
LOOK = {"of": "basic", "act": "look", "key": "train_data_dir"}


@pytest.fixture(scope="module")
def apps(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[App, App]]:
    folder = tmp_path_factory.mktemp("open")
    locked = tmp_path_factory.mktemp("locked")
    both = (
        start_app(folder, folder / "own", wait=False),
        start_app(locked, locked / "own", password=PASSWORD, wait=False),
    )
    for app in both:
        wait_until_ready(app)
    yield both
    assert [app.stop() for app in both] == [0, 0]


@pytest.fixture
def client(apps: tuple[App, App]) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=apps[0].url, timeout=30) as client:
        yield client


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the page was not allowed, with something worth reading."""
    folder = tmp_path_factory.mktemp("outside")
    (folder / "hidden from you").mkdir()
    (folder / "secret.toml").write_text(f'output_name = "{SECRET}"\n')
    (folder / "secret.txt").write_text(SECRET)
    (folder / "secret.png").write_bytes(b"\x89PNG" + SECRET.encode())
    return folder


# --- who may ask ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:7860", "", "169.254.1.1"])
@pytest.mark.parametrize("path", ["/", "/config", "/gradio_api/info", "/theme.css"])
def test_a_foreign_host_is_refused(client: httpx.Client, host: str, path: str) -> None:
    assert client.get(path, headers={"Host": host}).status_code in (400, 421)


@pytest.mark.parametrize("host", ["localhost:7860", "127.0.0.1", "[::1]:7860"])
def test_its_own_names_are_let_in(client: httpx.Client, host: str) -> None:
    assert client.get("/config", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:1"])
def test_requests_from_other_pages_are_refused(client: httpx.Client, origin: str) -> None:
    answer = client.post("/gradio_api/queue/join", json={}, headers={"Origin": origin})
    assert answer.status_code == 403


# --- with a password ------------------------------------------------------------------------------------------------

EVERY_DOOR = (
    "/",
    "/config",
    "/theme.css",
    "/runs",
    "/user",
    "/login_check",
    "/openapi.json",
    "/manifest.json",
    "/robots.txt",
    "/monitoring",
    "/favicon.ico",
    "/assets/index.js",
    "/static/img/logo.svg",
    "/guide/training",
    "/pictures/small/x",
    "/news/0",
    "/gradio_api/info",
    "/gradio_api/app_id",
    "/gradio_api/startup-events",
    "/gradio_api/heartbeat/x",
    "/gradio_api/queue/data?session_hash=x",
    "/gradio_api/file=/etc/passwd",
    "/no/such/door",
)


@pytest.mark.parametrize("path", EVERY_DOOR)
def test_nothing_answers_without_the_password(apps: tuple[App, App], path: str) -> None:
    assert httpx.get(apps[1].url + path, timeout=30).status_code == 401


@pytest.mark.parametrize(
    "path", ["/login", "/gradio_api/queue/join", "/gradio_api/run/x", "/gradio_api/upload", "/cancel"]
)
def test_nothing_is_taken_without_the_password(apps: tuple[App, App], path: str) -> None:
    assert httpx.post(apps[1].url + path, json={}, timeout=30).status_code == 401


def test_a_wrong_password_is_refused_and_the_right_one_opens(apps: tuple[App, App]) -> None:
    url = apps[1].url
    assert httpx.get(url, auth=("me", "wrong"), timeout=30).status_code == 401
    assert httpx.get(url, headers={"Authorization": "Basic ???"}, timeout=30).status_code == 401
    assert httpx.get(url, auth=("anyone", PASSWORD), timeout=30).status_code == 200


def test_listening_to_others_without_a_password_is_refused() -> None:
    command = [sys.executable, "-m", "kohya_gui", "--no-browser", "--host", "0.0.0.0"]
    ended = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd=PROJECT, timeout=120, check=False
    )
    assert ended.returncode == 2
    assert "TRAINER_PASSWORD" in ended.stderr


# --- guides ---------------------------------------------------------------------------------------------------------


def test_every_setting_has_its_place_in_the_guide(client: httpx.Client) -> None:
    page = client.get("/guide/settings").text
    missing = [key for key in known_settings() if f'id="{key}"' not in page]
    assert missing == []


def test_the_pictures_of_the_guide_are_there(client: httpx.Client) -> None:
    page = client.get("/guide/training").text
    pictures = re.findall(r'<img src="([^"]+)"', page)
    assert pictures
    for address in pictures:
        answer = client.get(f"/guide/{address}")
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "image/webp"


# --- files ----------------------------------------------------------------------------------------------------------

READERS = (
    "/gradio_api/file={path}",
    "/file={path}",
    "/gradio_api/file/{path}",
    "/gradio_api/%66ile={path}",
    "/gradio_api//file={path}",
    "/gradio_api/stream/x/y/z/{path}",
    "/gradio_api/proxy=file://{path}",
    "/custom_component/x/client/component/{path}",
    "/gradio_api/custom_component/x/client/component/{path}",
    "/static/{path}",
    "/assets/{path}",
    "/static/../../../../../../..{path}",
    "/svelte/{path}",
    "/guide/{path}",
    "/guide/..%2f..%2f{path}",
    "/guide/images/{path}",
    "/guide/images/..%2f..%2f..%2f..{path}",
    "/pictures/full/{path}",
    "/pictures/small/..%2f..{path}",
)


@pytest.mark.parametrize("door", READERS)
@pytest.mark.parametrize("name", ["secret.txt", "secret.png", "secret.toml"])
def test_no_door_reads_a_file(client: httpx.Client, outside: Path, door: str, name: str) -> None:
    answer = client.get(door.format(path=outside / name))
    assert SECRET not in answer.text
    assert answer.status_code in (400, 403, 404, 405, 422)


@pytest.mark.parametrize("door", ["/gradio_api/upload", "/upload", "/gradio_api/component_server", "/component_server"])
def test_nothing_can_be_put_or_asked_of_components(client: httpx.Client, door: str) -> None:
    assert client.post(door, files={"files": ("a.html", b"<script>")}).status_code == 403
    assert client.post(door, json={"fn_name": "ls", "component_id": 1, "data": ["/etc"]}).status_code == 403


def test_named_endpoints_show_nothing(client: httpx.Client, outside: Path) -> None:
    info = client.get("/gradio_api/info").json()
    assert info["named_endpoints"] == {}
    config = client.get("/config").json()
    for name in {str(each["api_name"]) for each in config["dependencies"] if each["backend_fn"]}:
        for door in ("run", "api", "call"):
            body = {"data": [str(outside / "secret.toml")], "event_data": {"act": "look", "at": str(outside)}}
            assert SECRET not in client.post(f"/gradio_api/{door}/{name}", json=body).text


def said(answer: dict[str, object]) -> str:
    return str(answer)


def test_a_field_with_a_path_outside_is_refused_and_not_looked_at(client: httpx.Client, outside: Path) -> None:
    for key in ("train_data_dir", "reg_data_dir", "pretrained_model_name_or_path", "output_dir", "vae", "clip_l"):
        told = said(trigger(client, "edit", "basic-fields", {"key": key, "value": str(outside)}))
        assert "outside the folders" in told
        assert "hidden from you" not in told
        trigger(client, "edit", "basic-fields", {"key": key, "undo": True})


def test_a_prompt_file_outside_is_refused(client: httpx.Client, outside: Path) -> None:
    told = trigger(client, "edit", "basic-fields", {"key": "sample_prompts", "value": str(outside / "secret.txt")})
    assert "outside the folders" in said(told)
    assert SECRET not in said(told)
    trigger(client, "edit", "basic-fields", {"key": "sample_prompts", "undo": True})


@pytest.mark.parametrize("act", ["look", "pick"])
@pytest.mark.parametrize("way", ["{path}", "~/../..{path}", "/proc/self/root{path}"])
def test_the_folder_dialog_lists_only_what_is_allowed(client: httpx.Client, outside: Path, act: str, way: str) -> None:
    at = way.format(path=outside)
    told = trigger(client, "act", "dialog", {"of": "basic", "act": act, "key": "train_data_dir", "at": at})
    assert "hidden from you" not in said(told)
    told = trigger(client, "act", "basic-fields", {"act": "browse", "key": at})
    assert "hidden from you" not in said(told)


def test_the_folder_dialog_lists_what_is_allowed(client: httpx.Client, apps: tuple[App, App]) -> None:
    (apps[0].folder / "in plain sight").mkdir()
    (apps[0].folder / ".hidden").mkdir()
    told = said(
        trigger(
            client, "act", "dialog", {"of": "basic", "act": "look", "key": "train_data_dir", "at": str(apps[0].folder)}
        )
    )
    assert "in plain sight" in told
    assert ".hidden" not in told


def test_settings_files_are_read_and_written_only_where_allowed(client: httpx.Client, outside: Path) -> None:
    told = said(trigger(client, "act", "preset-more", {"act": "open-file", "path_typed": str(outside / "secret.toml")}))
    assert "outside the folders" in told
    assert SECRET not in told
    trigger(client, "act", "preset-more", {"act": "save-file", "path_typed": str(outside / "new.toml")})
    assert not (outside / "new.toml").exists()


def test_a_link_that_leads_out_is_followed_nowhere(client: httpx.Client, apps: tuple[App, App], outside: Path) -> None:
    link = apps[0].folder / "link"
    link.symlink_to(outside, target_is_directory=True)
    told = said(trigger(client, "act", "dialog", {**LOOK, "at": str(link)}))
    assert "hidden from you" not in told
    told = said(trigger(client, "act", "preset-more", {"act": "open-file", "path_typed": str(link / "secret.toml")}))
    assert SECRET not in told


@pytest.mark.parametrize("act", ["resume", "resume-form", "go-on", "reuse"])
def test_only_listed_runs_can_be_resumed_or_read(client: httpx.Client, outside: Path, act: str) -> None:
    (outside / "x.run").mkdir(exist_ok=True)
    (outside / "x.run" / "config.toml").write_text(f'output_name = "{SECRET}"\n')
    for target in ("dialog", "runs-panel", "message"):
        name = f"../{outside.name}/x"
        words = said(trigger(client, "act", target, {"of": "runs", "act": act, "name": name, "settings": "run"}))
        assert SECRET not in words
        assert "no run named" in words


def test_nonsense_does_no_harm(client: httpx.Client) -> None:
    for told in (None, [], "x", {"key": 7}, {"key": "network_dim"}, {"key": "network_dim", "value": {"a": 1}}):
        answer = trigger(client, "edit", "basic-fields", told)
        assert answer["msg"] == "process_completed"
    assert client.get("/").status_code == 200


@pytest.mark.parametrize(
    "path", ["/", "/config", "/gradio_api/queue/join", "/assets/file=x", "/theme.css", "/guide/training"]
)
def test_doors_in_use_stay_open(path: str) -> None:
    assert not is_closed(path)


def test_what_means_nothing_changes_nothing_and_is_no_fault(client: httpx.Client, apps: tuple[App, App]) -> None:
    config = client.get("/config").json()
    ids = {each["id"]: each["props"].get("elem_id") for each in config["components"]}
    heard = {(name, ids[number]) for each in config["dependencies"] for number, name in each["targets"] if number}
    asked = [(name, target) for name, target in sorted(heard, key=str) if name in ("act", "edit") and target]
    assert len(asked) > 15
    for name, target in asked:
        told = trigger(client, name, target, {"act": "nothing", "key": "nothing", "of": "nobody"})
        assert told["success"], (name, target, told)
    assert "Traceback" not in apps[0].log.read_text(errors="replace")
