"""One training from the command to its end, by this program or by sd-scripts, in a process of its own."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import toml

from benchmarks.ground import PROJECT
from benchmarks.options import Options
from trainer.__main__ import COMPLETED, STOPPED
from trainer.config import load_config, save_config, to_kohya
from trainer.families import recognise_chosen

WARM = 3
_CLIP_FOLDER = "openai_clip-vit-large-patch14"
"""Where sd-scripts looks for its tokenizer inside `tokenizer_cache_dir`."""


@dataclass(frozen=True, slots=True)
class Trial:
    """What was noted of a training. `began` is when the command was given; `clock` names the notes' clock in use."""

    began: float
    ended: float
    moments: Sequence[Mapping[str, Any]]
    peak: int
    peak_gpu: int | None
    clock: str

    def at(self, what: str, last: bool = False) -> Mapping[str, Any]:
        """Return the first, or the last, note of something."""
        return [each for each in self.moments if each["what"] == what][-1 if last else 0]

    @property
    def to_first_step(self) -> float:
        """Seconds from the command to the end of the first step."""
        first = self.at("step")
        return float(first["cpu"] if self.clock == "cpu" else first["wall"] - self.began)

    @property
    def steps(self) -> list[float]:
        """Seconds of every step but the first few."""
        times = [each[self.clock] for each in self.moments if each["what"] == "step"]
        return [after - before for before, after in zip(times[WARM:], times[WARM + 1 :], strict=False)]

    @property
    def caching_rate(self) -> float:
        """Pictures a second while latents are cached, from the first one's begin to the last one's end."""
        name = "caching latents"
        begin, end = self.at(name), self.at(name, last=True)
        return float((end["done"] - begin["done"]) / (end[self.clock] - begin[self.clock]))

    @property
    def memory(self) -> float:
        """The most memory in use, in bytes; of the GPU where there is one."""
        return float(self.peak if self.peak_gpu is None else self.peak_gpu)

    @property
    def whole(self) -> float:
        """Seconds from the command to its end; of the CPU, to the last note."""
        return float(self.at("end")["cpu"] if self.clock == "cpu" else self.ended - self.began)


def ours(settings: Mapping[str, object], work: Path, options: Options, *, stop_after: int = 0) -> Trial:
    """Train with this program.

    With `stop_after`, and "stopped" in `work` as its output, it is told to stop after so many steps, as Ctrl+C does.
    """
    run = work / "run.toml"
    save_config(load_config(overrides=settings), run)
    command = [sys.executable, "-m", "benchmarks.watched", str(work / "times.json"), "train", str(run), "--overwrite"]
    return _run(command, work, options, stop_after)


def theirs(settings: Mapping[str, object], work: Path, options: Options) -> Trial:
    """Train with sd-scripts, with the same settings."""
    assert options.sd_scripts and options.sd_python, "--sd-scripts and --sd-scripts-python are needed"
    config = load_config(overrides=settings)
    configs = recognise_chosen(config).configs
    (work / "configs.json").write_text(json.dumps({name: dict(each) for name, each in configs.items()}, default=list))
    given = {**to_kohya(config), "tokenizer_cache_dir": str(_tokenizer(work)), "sdpa": True}
    given |= {"output_dir": str(work / "theirs"), "console_log_simple": True, "max_data_loader_n_workers": 0}
    (work / "theirs.toml").write_text(toml.dumps(given))
    child = PROJECT / "benchmarks" / "sd_scripts_child.py"
    command = [options.sd_python, child, work / "times.json", options.sd_scripts.resolve(), work / "configs.json"]
    return _run([*map(str, command), "--config_file", str(work / "theirs.toml")], work, options)


def _run(command: Sequence[str], work: Path, options: Options, stop_after: int = 0) -> Trial:
    times = work / "times.json"
    times.unlink(missing_ok=True)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    began = time.time()
    with (work / "output.txt").open("w") as output:
        process = subprocess.Popen(command, cwd=PROJECT, env=environment, stdout=output, stderr=output)
        if stop_after:
            _wait_for_step(work / "stopped" / "benchmark.run" / "events.jsonl", stop_after, process)
            began = time.time()
            process.terminate()
        process.wait()
    ended = time.time()
    if process.returncode not in (COMPLETED, STOPPED) or not times.exists():
        tail = (work / "output.txt").read_text(errors="replace")[-3000:]
        raise RuntimeError(f"{' '.join(command)} failed:\n{tail}")
    told = json.loads(times.read_text())
    clock = "cpu" if options.cpu_clock else "wall"
    return Trial(began, ended, told["moments"], told["peak"], told.get("peak_gpu"), clock)


def _wait_for_step(log: Path, step: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until a run's log has a step, or the process has ended."""
    while process.poll() is None:
        if log.exists() and f'"step": {step},' in log.read_text():
            return
        time.sleep(0.02)


def _tokenizer(work: Path) -> Path:
    """Write CLIP's vocabulary, from the package openai-clip, in the files that sd-scripts' tokenizer is read from."""
    folder = work / "tokenizers" / _CLIP_FOLDER
    if folder.exists():
        return folder.parent
    folder.mkdir(parents=True)
    packed = next(file for file in metadata.files("openai-clip") or [] if file.name.startswith("bpe_simple_vocab"))
    lines = gzip.decompress(Path(str(packed.locate())).read_bytes()).decode().split("\n")[1:48895]
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    symbols = [chr(code) for code in (*printable, *range(256, 512 - len(printable)))]
    words = [*symbols, *(f"{each}</w>" for each in symbols), *(line.replace(" ", "") for line in lines)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *lines, ""]), encoding="utf-8")
    end = "<|endoftext|>"
    special = {"bos_token": "<|startoftext|>", "eos_token": end, "pad_token": end, "unk_token": end}
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 77, **special}))
    return folder.parent
