"""Two processes train what one process trains with twice the accumulation: same pictures, same noise, same losses."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers.checkpoints import tiny_sd15
from tests.helpers.runs import logged, tiny_config, write_dataset
from trainer import train
from trainer.config import save_config


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="gloo under torchrun is tested on POSIX")
def test_two_ranks_equal_one_with_twice_the_accumulation(tmp_path: Path) -> None:
    model, dataset = tiny_sd15(tmp_path), write_dataset(tmp_path)
    settings = {"max_train_steps": 7, "train_batch_size": 2, "save_every_n_steps": 4, "flip_aug": True}
    alone = tiny_config(model, dataset, tmp_path / "one", gradient_accumulation_steps=2, **settings)
    train(alone, emit=lambda event: None)
    run = tmp_path / "RUN.toml"
    save_config(tiny_config(model, dataset, tmp_path / "two", **settings), run)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "trainer"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "train", str(run)], capture_output=True, text=True, timeout=300, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    losses = [
        [record["loss"] for record in logged(tmp_path / name / "tiny.run") if record["event"] == "StepDone"]
        for name in ("one", "two")
    ]
    assert len(losses[0]) == 7
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    one, two = (load_file(tmp_path / name / "tiny.safetensors") for name in ("one", "two"))
    assert all(torch.allclose(one[key], two[key], atol=2e-4) for key in one)
