import builtins
import os
import subprocess
import sys
from typing import Any

import pytest
import wandb

from experiments.wandb_report import main
from tests.conftest import PROJECT
from tests.wandb_server import WandbServer


def test_the_report_shows_groups_over_seeds() -> None:
    pytest.importorskip("wandb_workspaces")
    with WandbServer().listening() as server:
        account = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": "0" * 40}
        done = subprocess.run(
            [sys.executable, "-m", "experiments.wandb_report", "--entity=team", "--project=mine"],
            cwd=PROJECT,
            env={**os.environ, **account},
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    (view,) = server.views
    assert (view["entityName"], view["projectName"]) == ("team", "mine")
    for shown in ("test/acc", "val/acc", "val/loss", "stddev", '"group"', "Run Comparer"):
        assert shown in view["spec"], shown
    assert "report: http" in done.stdout


def test_without_the_package_the_remedy_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    known = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("wandb_workspaces"):
            raise ModuleNotFoundError(name)
        return known(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(SystemExit, match="pip install wandb-workspaces"):
        main(["--entity=team"])


def test_without_an_account_it_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    pytest.importorskip("wandb_workspaces")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # never another machine
    wandb.teardown()  # W&B reads the environment once, and other tests came before
    with pytest.raises(SystemExit, match=r"can't save the report: .*; check WANDB_API_KEY"):
        main(["--entity=team"])
