"""CI and pre-commit run what everybody can run by hand."""

import yaml

import start
from tests.conftest import PROJECT


def test_ci_and_pre_commit_call_what_everybody_can_call() -> None:
    script = (PROJECT / ".ci/run").read_text()
    workflow = yaml.safe_load((PROJECT / ".github/workflows/ci.yml").read_text())
    (job,) = workflow["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step] == ["bash .ci/run"]
    assert job["env"]["PIP_EXTRA_INDEX_URL"] in str(start.__doc__)
    (python,) = [step["with"]["python-version"] for step in job["steps"] if "with" in step]
    assert f"python_requires = >={python}" in (PROJECT / "setup.cfg").read_text()
    config = yaml.safe_load((PROJECT / ".pre-commit-config.yaml").read_text())
    (hook,) = [hook for repository in config["repos"] for hook in repository["hooks"]]
    assert hook["entry"] == "python3 start.py lint"
    assert hook["entry"] in script.splitlines()
    assert not hook["pass_filenames"]
