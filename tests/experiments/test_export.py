"""An exported model needs nothing of this project, and computes the same."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cli import main
from datamodules.files import read_test
from datamodules.sources import synthetic_folder
from experiments import export, load
from experiments.checkpoints.loading import checkpoint_sha256
from tests.conftest import IMAGES, PROJECT, Cli, mark_slow

# Not the small initial weights: two logits that nearly tie give the same probability.
_MLP = ["--model=MLP", "--model.hidden_units=[8]", "--model.weight_std=null"]
KINDS = {
    "batch": [*_MLP, "--model.norm=batch"],
    "layer": [*_MLP, "--model.norm=layer"],
    "channel": [*_MLP, "--data.normalization=channel"],
    "FastCNN": ["--model=FastCNN", "--model.widths=[4, 4, 4]", "--trainer.precision=bf16-mixed"],
    "CNN": ["--model=CNN", "--trainer.max_steps=2", "--trainer.precision=32-true"],
}


def in_onnx(path: Path, images: np.ndarray[Any, Any]) -> tuple[Any, dict[str, str]]:
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(path)
    facts = session.get_modelmeta().custom_metadata_map
    return session.run(None, {"images": images})[0], facts


def in_torch(path: Path, images: np.ndarray[Any, Any]) -> tuple[Any, dict[str, str]]:
    files = {"metadata.json": ""}
    module = torch.export.load(path, extra_files=files).module()
    facts = json.loads(files["metadata.json"])
    facts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in facts.items()}
    with torch.no_grad():
        return module(torch.from_numpy(images)).numpy(), facts


OPEN: dict[str, Callable[..., Any]] = {"onnx": in_onnx, "torch_export": in_torch}
FILES = {"onnx": "model.onnx", "torch_export": "model.pt2"}
QUICK = [("batch", "onnx"), ("layer", "torch_export"), ("FastCNN", "onnx")]
CASES = [(kind, form) for kind in KINDS for form in FILES]


@pytest.mark.parametrize(
    ("kind", "form"),
    mark_slow(
        CASES,
        except_for=[("batch", "onnx"), ("layer", "torch_export"), ("FastCNN", "torch_export")],
    ),
)
def test_the_file_computes_what_the_model_does(
    kind: str, form: str, fit: Cli, data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = fit(*KINDS[kind], "--test_after_fit=true")
    run = record.path
    capsys.readouterr()
    main(["export", "--name=run", f"--runs_dir={run.parent}", f"--format={form}"])
    assert "test accuracy" in capsys.readouterr().out
    test = read_test(synthetic_folder(data_dir, IMAGES))
    model = load(run)
    for count in (1, 7, len(test.labels)):  # any number of images
        found, facts = OPEN[form](run / FILES[form], test.images[:count])
        exact = 1e-5 if model.precision == "32-true" else 0.02
        expected = model.probabilities(torch.from_numpy(test.images[:count])).numpy()
        np.testing.assert_allclose(found, expected, atol=exact)
    assert json.loads(facts["labels"]) == model.classes
    assert facts["checkpoint_sha256"] == checkpoint_sha256(run / "best.ckpt")
    accuracy = float((found.argmax(1) == test.labels).mean())
    assert float(facts["test_accuracy"]) == accuracy
    of_the_model = float((expected.argmax(1) == test.labels).mean())
    assert of_the_model == pytest.approx(record.summary["test/acc"])
    assert accuracy == of_the_model or model.precision != "32-true"


def test_a_checkpoint_alone_needs_the_test_set(
    fit: Cli, data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = shutil.copy(fit(*KINDS["batch"]).path / "best.ckpt", tmp_path / "alone.ckpt")
    capsys.readouterr()
    official = data_dir / "cifar-10-batches-py"
    assert not official.exists()
    words = ["export", f"--ckpt_path={alone}", "--format=torch_export"]
    for flag in ("--data_dir", "--data.data_dir"):  # errors of the data name the second
        with pytest.raises(SystemExit) as failed:
            main([*words, f"{flag}={data_dir}"])
        assert failed.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: no test set to verify the file with: CIFAR-10 not found in")
        assert line.endswith("; name its folder with --data_dir")
    assert not (tmp_path / "model.pt2").exists()


def test_the_last_weights_of_a_run_without_validation(
    fit: Cli, capsys: pytest.CaptureFixture[str]
) -> None:
    run = fit(*KINDS["channel"], "--data.val_size=0").path
    capsys.readouterr()
    words = ["--name=run", f"--runs_dir={run.parent}", "--format=torch_export"]
    assert "it has last: pass --ckpt_path last, or name " in refused(words, capsys)
    main(["export", *words, "--ckpt_path=last"])
    _, facts = in_torch(run / "model.pt2", np.zeros((1, 3, 32, 32), np.uint8))
    assert facts["source"] == "last.ckpt"


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as failed:
        main(["export", *words])
    assert failed.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "error: pass --name RUN or --ckpt_path FILE, to say which weights to export"),
        (["--name=x", "--ckpt_path=y"], "error: pass --name RUN or --ckpt_path y, not both"),
        (["--name=nothing"], "is no checkpoint and no run"),
        (["--name=x", "--format=tflite"], "invalid choice: 'tflite'"),
        (["--nmae=x"], "unrecognized arguments: --nmae=x"),
    ],
)
def test_what_can_not_be_exported_is_one_line(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(words, capsys)


def test_numpy_is_not_exported(fit: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    run = fit("--model=NumPyMLP", "--model.hidden_units=[4]").path
    capsys.readouterr()
    line = refused(["--name=run", f"--runs_dir={run.parent}", "--format=torch_export"], capsys)
    assert "NumPyMLP can't be exported: NumPyMLP computes with NumPy" in line
    assert not (run / "model.pt2").exists()


def test_a_file_that_computes_something_else_is_not_kept(
    fit: Cli, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = fit(*KINDS["batch"]).path
    capsys.readouterr()

    def wrong(self: export.Exportable, images: torch.Tensor) -> torch.Tensor:
        return self.model.evaluate(images.to(torch.float32) - self.mean + 1).softmax(1)

    monkeypatch.setattr(export.Exportable, "forward", wrong)
    line = refused(["--name=run", f"--runs_dir={run.parent}", "--format=torch_export"], capsys)
    assert "does not compute what the model does" in line
    assert not (run / "model.pt2").exists()


def test_missing_packages_are_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert "pip install onnx onnxscript onnxruntime" in refused(["--name=x"], capsys)


def test_a_strangers_run_is_exported_only_if_it_leads_nowhere(
    fit: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = fit(*KINDS["batch"]).path
    config, outside = run / "config.yaml", tmp_path / "outside"
    text = re.sub(r"data_dir: .*", f"data_dir: {outside}", config.read_text())
    config.write_text(text)  # not as this user's fit has written it
    capsys.readouterr()
    words = ["--name=run", f"--runs_dir={run.parent}", "--format=torch_export"]
    line = refused(words, capsys)
    assert "data_dir leads out of the run" in line
    assert "--trust_run true" in line
    config.write_text(text.replace("lightning_modules.MLP", "evil.Evil"))
    assert "evil.Evil" in refused([*words, f"--data_dir={outside}"], capsys)
    assert not outside.exists()
    assert not (run / "model.pt2").exists()


def test_a_place_that_is_taken_is_refused_before_any_work(
    fit: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = fit(*KINDS["batch"]).path
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    capsys.readouterr()
    words = ["--name=run", f"--runs_dir={run.parent}", "--format=torch_export"]
    for name in ("record.json", "best.ckpt", "config.yaml", "metrics.jsonl"):
        assert "is a file of a run" in refused([*words, f"--output={run / name}"], capsys)
    assert "lies in no folder" in refused([*words, f"--output={tmp_path / 'a' / 'b'}"], capsys)
    assert "is a folder" in refused([*words, f"--output={tmp_path}"], capsys)
    line = refused([*words, f"--output={tmp_path / 'model.onnx'}"], capsys)
    assert "has the ending of onnx: pass --format onnx" in line
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()} == before


def test_a_class_of_ones_own_is_named(
    fit: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own = "from lightning_modules import MLP\n\n\nclass Mine(MLP):\n    pass\n"
    (tmp_path / "mine_of_export.py").write_text(own, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    run = fit("--model=mine_of_export.Mine", "--model.hidden_units=[4]").path
    capsys.readouterr()
    words = ["--name=run", f"--runs_dir={run.parent}", "--format=torch_export"]
    assert "or --model_class mine_of_export.Mine" in refused(words, capsys)
    assert "no attribute" in refused([*words, "--model_class=mine_of_export.Yours"], capsys)
    assert "name it as MODULE.CLASS" in refused([*words, "--model_class=Mine"], capsys)
    (tmp_path / "ends.py").write_text("raise SystemExit(0)", encoding="utf-8")
    assert "SystemExit: 0; name it as" in refused([*words, "--model_class=ends.Net"], capsys)
    assert "derive it from" in refused([*words, "--model_class=json.JSONDecoder"], capsys)
    main(["export", *words, "--model_class=mine_of_export.Mine"])
    assert (run / "model.pt2").is_file()
    assert sys.path[0] != str(tmp_path)  # a file there hides no library


OWN_DATA = '''
from pathlib import Path

from datamodules import CIFAR10DataModule
from datamodules.batches import Splits
from datamodules.files import ImageSet


class Halves(CIFAR10DataModule):
    """The small set, with the labels that remain of five classes."""

    @classmethod
    def count_classes(cls, classes=5, **settings):
        return classes

    def __init__(self, data_dir: str | None = None, classes: int = 5, **settings) -> None:
        super().__init__(data_dir, **settings)
        self.classes = classes

    def read(self) -> Splits:
        train, _, test, _ = super().read()
        parts = (ImageSet(s.images, s.labels % self.classes, s.names) for s in (train, test))
        train, test = parts
        return Splits(train, None, test, [str(number) for number in range(self.classes)])
'''


def test_data_of_ones_own_gives_its_test_set(
    fit: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "halves_of_export.py").write_text(OWN_DATA, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    own = ["--data=halves_of_export.Halves", "--data.classes=3", "--model.lr=0.01"]
    record = fit("--model=MLP", "--model.hidden_units=[9]", *own, "--test_after_fit=true")
    words = ["--format=torch_export"]
    main(["export", "--name=run", f"--runs_dir={record.path.parent}", *words])
    assert f"test accuracy {record.summary['test/acc']:.4f} on 200" in capsys.readouterr().out
    alone = shutil.copy(record.path / "best.ckpt", tmp_path / "alone.ckpt")
    line = refused([f"--ckpt_path={alone}", *words], capsys)
    assert "is of data of the class Halves: export its run, with --name" in line


def test_a_run_whose_configuration_names_no_data_is_one_line(
    fit: Cli, capsys: pytest.CaptureFixture[str]
) -> None:
    run = fit("--model=MLP", "--model.hidden_units=[4]").path
    words = ["--name=run", f"--runs_dir={run.parent}", "--format=torch_export"]
    for data in ("", "data: 3", "data: {class_path: CIFAR10DataModule, init_args: [1]}"):
        (run / "config.yaml").write_text(f"{data}\nseed_everything: 1\n", encoding="utf-8")
        capsys.readouterr()
        assert "data" in refused(words, capsys)


@pytest.mark.slow
def test_nobody_needs_to_listen(fit: Cli) -> None:
    run = fit(*KINDS["batch"]).path
    words = ["export", "--name=run", f"--runs_dir={run.parent}", "--format=torch_export"]
    command = shlex.join([sys.executable, "cli.py", *words])
    done = subprocess.run(f"{command} > /dev/full", shell=True, cwd=PROJECT, check=False)
    assert done.returncode == 0
    assert (run / "model.pt2").is_file()


def pictures(folder: Path, names: str) -> Path:
    """A folder with six pictures of each class."""
    for name in names:
        (folder / name).mkdir(parents=True)
        for number in range(6):
            Image.new("RGB", (32, 32), (ord(name), number, 0)).save(folder / name / f"{number}.png")
    return folder


def test_the_test_images_have_the_classes_of_the_model_and_are_not_its_training_images(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = pictures(tmp_path / "abc", "abc")
    flags = ["--data=ImageFolderDataModule", f"--data.data_dir={data}", "--data.batch_size=4"]
    flags += ["--data.val_size=0"]
    limits = ["--trainer.max_steps=2", "--trainer.accelerator=cpu", "--trainer.logger=false"]
    main(["fit", "--model=MLP", *flags, *limits, f"--runs_dir={runs}", "--name=run"])
    capsys.readouterr()
    words = ["--format=torch_export", f"--runs_dir={runs}"]
    other = pictures(tmp_path / "bcd", "bcd")
    line = refused([*words, "--name=run", "--ckpt_path=last", f"--data_dir={other}"], capsys)
    assert "has the classes b, c, d; the model knows a, b, c" in line
    alone = shutil.copy(runs / "run/last.ckpt", tmp_path / "alone.ckpt")
    line = refused([*words, f"--ckpt_path={alone}", f"--data_dir={data}"], capsys)
    assert "export the run, with --name" in line
