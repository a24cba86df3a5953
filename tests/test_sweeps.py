"""Sweeps as their users start them: ``wandb sweep``, then ``wandb agent``."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.conftest import PROJECT, SHORT
from tests.wandb_server import WandbServer

POINTS = [
    {"model.lr": 0.001, "model.activation": "elu", "model.norm": "none", "seed_everything": 1},
    {"model.lr": 0.003, "model.activation": "relu", "model.norm": "layer", "seed_everything": 2},
]


@pytest.mark.slow
def test_an_agent_runs_the_points_of_a_sweep(tmp_path: Path, synthetic: list[str]) -> None:
    sweep = yaml.safe_load((PROJECT / "configs/sweeps/claims_grid.yaml").read_text())
    sweep["command"] += [*SHORT, *synthetic, f"--runs_dir={tmp_path / 'runs'}"]
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    with WandbServer().listening() as server:
        server.points = [*POINTS]
        env = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "WANDB_BASE_URL": server.url,
            "WANDB_API_KEY": "0" * 40,
            "WANDB_DIR": str(tmp_path),
        }

        def wandb(*args: str) -> None:
            command = [sys.executable, "-m", "wandb", *args]
            done = subprocess.run(
                command, cwd=PROJECT, env=env, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stderr

        wandb("sweep", str(tmp_path / "sweep.yaml"))
        wandb("agent", "team/cifar10-lightning/sweep1")
    records = {
        fields["seed"]: fields
        for path in (tmp_path / "runs").glob("*/record.json")
        for fields in [json.loads(path.read_text())]
    }
    assert {seed: fields["status"] for seed, fields in records.items()} == dict.fromkeys(
        (1, 2), "finished"
    )
    assert server.exit_codes == [0, 0]
    assert server.runs.keys() == {"point1", "point0"}
    groups = {run["groupName"] for run in server.runs.values()}
    assert len(groups) == 2  # points are told apart
    for point in POINTS:
        (group,) = [group for group in groups if f"-lr_{point['model.lr']}-" in group]
        assert f"norm_{point['model.norm']}" in group
        assert "-s1" not in group
