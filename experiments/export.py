"""Writes a trained model as one file that needs nothing of this project: ``python cli.py export``.

    python cli.py export --name my-mlp                            # runs/my-mlp/model.onnx
    python cli.py export --name my-mlp --format torch_export      # runs/my-mlp/model.pt2
    python cli.py export --ckpt_path best.ckpt --data_dir DIR     # a checkpoint without its run

The file takes uint8 images (N, 3, 32, 32), N free, red, green, blue, and gives probabilities
(N, classes): normalisation, views of an image and softmax are in it, in float32. It is written only
after it gave the same accuracy on the test set as the model, and tells that accuracy and the names
of the classes in its metadata.
"""

import argparse
import importlib
import json
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from datamodules import CIFAR10DataModule, DatasetError, ImageFolderDataModule
from datamodules.files import ImageSet
from experiments.checkpoints.evaluations import check_drawn, checkpoint_of
from experiments.checkpoints.loading import (
    BEST,
    DATA_MODULES,
    LAST,
    find_checkpoint,
    load_checkpoint,
    state_of_data,
    weights_sha256,
)
from experiments.command_line.config_files import expand_home, use_utf8
from experiments.command_line.own_modules import add_working_directory
from experiments.command_line.parsing import ParserError, RunParser
from experiments.errors import OneLineParser, RunError, fail
from experiments.inference import BATCH, Predictor, load
from experiments.monitoring.summary import show
from experiments.records.files import replacing
from experiments.records.log import METRICS
from experiments.records.reader import read_config
from experiments.records.record import CONFIG, RECORD, RunRecord
from experiments.records.trust import TRUST_FLAG, check_run_config
from experiments.texts import printable
from lightning_modules import Classifier

_ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_ENDINGS = {"onnx": ".onnx", "torch_export": ".pt2"}
# How much a probability may differ by: sums in another order, in float32.
_TOLERANCE = 1e-4

Run = Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]


class Exportable(nn.Module):
    """From uint8 images ``(N, 3, 32, 32)`` to class probabilities ``(N, classes)``, float32.

    Args:
        predictor: a trained model; in float32.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, predictor: Predictor) -> None:
        super().__init__()
        self.model = predictor.model
        statistics = predictor.normalizer.statistics
        self.register_buffer("mean", statistics["mean"])
        self.register_buffer("std", statistics.get("std", torch.ones(())))

    def forward(self, images: Tensor) -> Tensor:
        """Normalises, evaluates and applies the softmax."""
        normalized = (images.to(torch.float32) - self.mean) / self.std
        return self.model.evaluate(normalized).softmax(1)


class Verified(NamedTuple):
    """What a file came to on the test set.

    Attributes:
        accuracy: of the file, and of the model.
        images: how many there were.
        difference: the largest of any probability.
    """

    accuracy: float
    images: int
    difference: float


def export(loaded: Predictor, source: str, form: str, output: Path, test: ImageSet) -> Verified:
    """Writes a model and verifies the file on the test set before it is put in its place.

    Args:
        loaded: the trained model, as `load` gives it.
        source: the name of its checkpoint, for the metadata.
        form: ``onnx`` or ``torch_export``.
        output: the file to write.
        test: the images to verify it with.

    Raises:
        RunError: if the model can't be exported, or the file does not compute the same.
    """
    sha256 = weights_sha256(loaded.model)
    predictor = Predictor(loaded.model, loaded.normalizer, loaded.classes, "32-true")
    expected = predictor.probabilities(torch.from_numpy(test.images)).numpy()
    accuracy = _accuracy(expected, test)
    facts = {
        "checkpoint_sha256": sha256,
        "source": source,
        "labels": predictor.classes,
        "test_accuracy": accuracy,
        "test_images": len(test.labels),
    }
    write, open_file = (_write_onnx, _open_onnx) if form == "onnx" else (_write_pt2, _open_pt2)
    program = _program(predictor)
    with replacing(output) as partial:
        write(program, partial, facts)
        run = open_file(partial)
        parts = np.array_split(test.images, range(BATCH, len(test.images), BATCH))
        found = np.concatenate([run(part) for part in parts])
        difference = float(np.abs(found - expected).max())
        verified = Verified(_accuracy(found, test), len(test.labels), difference)
        if verified.accuracy != accuracy or difference > _TOLERANCE:
            raise RunError(
                f"the file does not compute what the model does: accuracy {verified.accuracy:.4f}, "
                f"the model {accuracy:.4f}; largest difference {difference:.2g}: take another "
                "--format"
            )
    return verified


def _accuracy(probabilities: np.ndarray[Any, Any], test: ImageSet) -> float:
    return float((probabilities.argmax(1) == test.labels).mean())


def _program(predictor: Predictor) -> Any:
    example = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    free = {"images": {0: torch.export.Dim("batch")}}
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.export.export(Exportable(predictor), (example,), dynamic_shapes=free)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        kind = type(predictor.model).__name__
        raise RunError(f"{kind} can't be exported: {reason}") from error


def _write_onnx(program: Any, path: Path, facts: Mapping[str, Any]) -> None:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        written: Any = torch.onnx.export(
            program, dynamo=True, verbose=False, input_names=["images"],
            output_names=["probabilities"],
        )  # fmt: skip
    for key, value in facts.items():
        written.model.metadata_props[key] = value if isinstance(value, str) else json.dumps(value)
    written.save(path)


def _open_onnx(path: Path) -> Run:
    session = importlib.import_module("onnxruntime").InferenceSession(path.read_bytes())

    def run(images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        (probabilities,) = session.run(None, {"images": images})
        return np.asarray(probabilities)

    return run


def _write_pt2(program: Any, path: Path, facts: Mapping[str, Any]) -> None:
    with path.open("wb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(program, file, extra_files={"metadata.json": json.dumps(dict(facts))})


def _open_pt2(path: Path) -> Run:
    with path.open("rb") as file:
        module = torch.export.load(file).module()

    def run(images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        with torch.no_grad():
            probabilities: np.ndarray[Any, Any] = module(torch.from_numpy(images)).numpy()
        return probabilities

    return run


def main(args: list[str] | None = None) -> None:
    """Exports a model and prints what the file came to.

    Args:
        args: arguments without the program's name; default: those of the process.
    """
    use_utf8()
    options = parser().parse_args(args)
    try:
        _check_packages(options.format)
        checkpoint = _checkpoint(options)
        output = options.output or checkpoint.with_name("model" + _ENDINGS[options.format])
        _check_output(output, options.format)
        loaded = load(checkpoint, _class_of(options.model_class))
        test = _test_set(checkpoint, options, loaded.classes)
        verified = export(loaded, checkpoint.name, options.format, output, test)
    except DatasetError as error:  # its cause lacks the remedies of a fit
        found = error.__cause__ if isinstance(error.__cause__, DatasetError) else error
        fail(f"no test set to verify the file with: {found}; name its folder with --data_dir")
    except (RunError, ValueError, OverflowError, OSError) as error:
        fail(str(error))
    size = output.stat().st_size / 2**20
    show(
        printable(
            f"wrote {output} ({size:.1f} MiB): test accuracy {verified.accuracy:.4f} on "
            f"{verified.images:,} images, as the model in float32; largest difference of a "
            f"probability {verified.difference:.1e}"
        )
    )


def parser() -> argparse.ArgumentParser:
    """The options."""
    parser = OneLineParser(
        prog="cli.py export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--name", help="name of the run, whose chosen checkpoint is exported")
    parser.add_argument("--runs_dir", type=expand_home, default=Path("runs"))
    parser.add_argument(
        "--ckpt_path", type=expand_home, help="a checkpoint; with --name: best or last"
    )
    parser.add_argument("--format", choices=_ENDINGS, default="onnx")
    parser.add_argument("--output", type=expand_home, help="default: model.onnx or model.pt2 there")
    parser.add_argument(
        "--data_dir",
        "--data.data_dir",
        type=expand_home,
        help="of the test set; default: the run's",
    )
    parser.add_argument("--model_class", help="MODULE.CLASS of a model that is not of this project")
    parser.add_argument(TRUST_FLAG, choices=("true", "false"), default="false")
    return parser


def _check_packages(form: str) -> None:
    missing = []
    for package in _ONNX_PACKAGES if form == "onnx" else ():
        try:
            importlib.import_module(package)
        except ImportError:
            missing.append(package)
    if missing:
        raise RunError(
            f"ONNX needs {' and '.join(missing)}: pip install {' '.join(_ONNX_PACKAGES)}, or take "
            "--format torch_export"
        )


def _checkpoint(options: argparse.Namespace) -> Path:
    """The checkpoint of ``--name`` and ``--ckpt_path``, as in the other commands."""
    if options.name is None and options.ckpt_path is None:
        raise RunError("pass --name RUN or --ckpt_path FILE, to say which weights to export")
    if options.name is None:
        return checkpoint_of(options.ckpt_path)
    run, which = options.runs_dir / options.name, str(options.ckpt_path or "")
    if which and which not in {BEST, LAST}:
        raise RunError(f"pass --name RUN or --ckpt_path {which}, not both")
    return find_checkpoint(run, which) if which else checkpoint_of(run)


def _check_output(output: Path, form: str) -> None:
    """Refuses a place where there is no folder, a file of a run, or another format's ending."""
    for other, ending in _ENDINGS.items():
        if output.suffix == ending and other != form:
            raise RunError(f"{output} has the ending of {other}: pass --format {other}")
    if not output.parent.is_dir() or output.is_dir():
        what = "is a folder" if output.is_dir() else "lies in no folder that is there"
        raise RunError(f"{output} {what}: name a file with --output")
    of_a_run = output.name in {CONFIG, RECORD, METRICS} or output.suffix == ".ckpt"
    if output.exists() and of_a_run:
        raise RunError(f"{output} is a file of a run: name another with --output")


def _class_of(name: str | None) -> type[Classifier] | None:
    """The class of ``--model_class``, from a module here or an installed one."""
    if name is None:
        return None
    module, _, kind = name.rpartition(".")
    if not module:
        raise RunError(f"--model_class {name}: name it as MODULE.CLASS, as in --model")
    add_working_directory([name])
    try:
        found = getattr(importlib.import_module(module), kind)
    except (Exception, SystemExit) as error:  # whatever a user's module raises
        reason = f"{type(error).__name__}: {error}"
        raise RunError(f"--model_class {name}: {reason}; name it as MODULE.CLASS") from error
    if not (isinstance(found, type) and issubclass(found, Classifier)):
        raise RunError(f"--model_class {name}: derive it from lightning_modules.Classifier")
    return found


def _test_set(checkpoint: Path, options: argparse.Namespace, classes: Sequence[str]) -> ImageSet:
    """The test set of the data that a model was trained on, in its folder or in ``--data_dir``."""
    parser = RunParser()
    parser.add_lightning_class_args(CIFAR10DataModule, "data", subclass_mode=True)
    given = _data_of(checkpoint, options)
    add_working_directory([str(given)])
    try:
        parsed = parser.parse_object({"data": given})
    except ParserError as stop:
        raise RunError(str(stop.error)) from stop
    if options.data_dir:
        parsed.data.init_args.data_dir = str(options.data_dir)
    data: CIFAR10DataModule = parser.instantiate_classes(parsed).data
    data.download = False
    is_alone = not (checkpoint.parent / CONFIG).is_file()
    if is_alone and isinstance(data, ImageFolderDataModule) and not data.has_test:
        raise RunError(
            f"{data.data_dir} has no test/, and which images were not trained on is in the "
            "configuration of the run: export the run, with --name"
        )
    test = data.read_test_set(classes)
    if data.draws("test") and (checkpoint.parent / RECORD).is_file():
        _check_pictures(checkpoint.parent, data)
    return test


def _check_pictures(run: Path, data: CIFAR10DataModule) -> None:
    """Refuses pictures that are not the run's, if the test images are drawn from them."""
    known = RunRecord.open(run).fields.get("pictures")
    data.setup("test")
    if known and not (data.fingerprint() or "").startswith(known):
        check_drawn(data, "test")


def _data_of(checkpoint: Path, options: argparse.Namespace) -> Any:
    """The class of the data and its arguments, from the run's configuration or the checkpoint."""
    own = checkpoint.parent / CONFIG
    if own.is_file():
        if options.trust_run == "false":
            check_run_config(own, [f"--data.data_dir={options.data_dir}"] * bool(options.data_dir))
        return read_config(own).get("data")
    name, _ = state_of_data(checkpoint, load_checkpoint(checkpoint))
    if name not in DATA_MODULES:
        raise RunError(f"{checkpoint} is of data of the class {name}: export its run, with --name")
    return {"class_path": f"datamodules.{name}"}
