"""Tools: one class gives the command line, the help and what is refused; what main does with how they end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trainer.__main__ import COMPLETED, REFUSED, STOPPED, main
from trainer.ground.errors import Stopped
from trainer.settings.section import Show, argument
from trainer.tools import TOOLS, Arguments, Desk, Tool
from trainer.tools.docs import DOCUMENT, page

Capture = pytest.CaptureFixture[str]


class MixArguments(Arguments):
    """One argument of each kind."""

    save_to: str = argument(..., Show("Target", widget="file"))
    """Where it goes; 100 % of it."""

    models: tuple[str, ...] = argument(..., Show("Sources", widget="list"))
    """What is mixed."""

    ratios: tuple[float, ...] = argument((), Show("Ratios", widget="list"), rule="a list of numbers")
    """How much of each."""

    new_rank: int | None = argument(None, Show("Rank"), ge=1)
    """The rank."""

    strength: float = argument(1.0, Show("Strength"), gt=0)
    """How much of all."""

    method: str = argument("sum", Show("Method"), choices=("sum", "cumulative"))
    """How."""

    dry: bool = argument(False, Show("Dry"))
    """Only say it."""

    verify: bool = argument(True, Show("Verify"))
    """Read back."""


class Mix(Tool[MixArguments]):
    """Says what it was asked for."""

    name = "mix"
    help = "mix things"
    arguments = MixArguments
    positional = {"save_to": "TARGET"}

    def run(self, arguments: MixArguments, desk: Desk) -> int:
        if arguments.dry:
            raise Stopped("Stopped while dry.")
        desk.say(json.dumps(arguments.model_dump()))
        return COMPLETED


@pytest.fixture
def mix(monkeypatch: pytest.MonkeyPatch) -> Mix:
    """One more tool in the list, and nothing else."""
    tool = Mix()
    monkeypatch.setitem(TOOLS, tool.name, tool)
    return tool


def test_a_tool_in_the_list_is_a_command_with_typed_arguments(mix: Mix, capsys: Capture) -> None:
    words = ["mix", "out.safetensors", "--models", "a", "b", "--ratios", "1", "0.5", "--new-rank=4", "--no-verify"]
    assert main([*words, "--method", "cumulative", "--models", "c", "--strength", "2"]) == COMPLETED
    assert json.loads(capsys.readouterr().out) == {
        "save_to": "out.safetensors",
        "models": ["a", "b", "c"],
        "ratios": [1, 0.5],
        "new_rank": 4,
        "strength": 2,
        "method": "cumulative",
        "dry": False,
        "verify": False,
    }


def test_everything_wrong_is_said_at_once(mix: Mix, capsys: Capture) -> None:
    words = [
        "mix",
        "x",
        "--models",
        "a",
        "--new_rank",
        "0",
        "--method",
        "comulative",
        "--strength",
        "much",
        "--ratios",
        "b",
    ]
    assert main(words) == REFUSED
    lines = capsys.readouterr().err.splitlines()
    assert {line.split(":")[0] for line in lines} == {"new_rank", "method", "strength", "ratios"}
    assert 'did you mean "cumulative"?' in "\n".join(lines)


def test_what_must_be_given_is_asked_for_by_name(mix: Mix, capsys: Capture) -> None:
    assert main(["mix", "--ratio=2"]) == REFUSED
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in lines] == ["save_to", "models", "--ratio"]
    assert "did you mean --ratios?" in lines[-1]


def test_a_tool_that_was_told_to_end_says_so(mix: Mix, capsys: Capture) -> None:
    assert main(["mix", "x", "--models", "a", "--dry"]) == STOPPED
    assert capsys.readouterr().err == "Stopped while dry.\n"


@pytest.mark.parametrize("name", TOOLS)
def test_every_argument_of_every_tool_has_its_help(name: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert TOOLS[name].help in printed
    for setting_ in TOOLS[name].settings.values():
        assert setting_.help, setting_.key
        assert " ".join(setting_.help.split()) in printed


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--config_file", "RUN"], "python launch.py train RUN.toml"),
        (["--config_file=RUN"], "python launch.py train RUN.toml"),
        (["RUN", "--network_dim", "8"], "--set network_dim=VALUE"),
        (["RUN", "--network-dim=8"], "--set network_dim=VALUE"),
        (["RUN", "--resum", "auto"], "did you mean --resume?"),
        (["RUN", "OTHER"], "OTHER: is one word too many"),
        ([], "file: is not given; write python launch.py train RUN.toml"),
    ],
)
def test_the_habits_of_sd_scripts_command_line_are_told_the_way(
    tmp_path: Path, capsys: Capture, words: list[str], said: str
) -> None:
    run = tmp_path / "RUN.toml"
    run.write_text("")
    assert main(["train", *(word.replace("RUN", str(run)) for word in words)]) == REFUSED
    printed = capsys.readouterr().err
    assert said in printed
    assert "Traceback" not in printed


def test_the_page_about_tools_is_up_to_date(project: Path) -> None:
    assert (project / DOCUMENT).read_text(encoding="utf-8") == page(TOOLS), "python -m trainer.tools writes it anew"
