# ruff: noqa: E501 - a fault is a line
"""Faults of one line, put in one at a time, to see whether the tests that concern them notice.

``python -m tests.mutants [WORD ...]`` (in a clean checkout; minutes) tries those whose file or text
holds a word, each in a copy of the checkout, and prints the survivors. It is no test itself: it
tells which tests are missing.
"""

import importlib
import io
import os
import shutil
import sys
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent
# File -> the tests that concern it, quick ones first.
TESTS = {
    "lightning_modules/muon.py": ["lightning_modules/test_muon.py", "test_gpu_rehearsal.py"],
    "lightning_modules/schedules.py": [
        "lightning_modules/test_muon.py",
        "lightning_modules/test_classifier.py",
    ],
    "lightning_modules/classifier.py": [
        "lightning_modules/test_classifier.py",
        "test_gpu_rehearsal.py",
    ],
    "lightning_modules/mlp.py": ["lightning_modules/test_mlp.py"],
    "lightning_modules/cnn.py": ["lightning_modules/test_cnn.py"],
    "lightning_modules/fast_cnn.py": [
        "lightning_modules/test_fast_cnn.py",
        "test_gpu_rehearsal.py",
    ],
    "lightning_modules/numpy_mlp.py": [
        "lightning_modules/test_numpy_mlp.py",
        "lightning_modules/test_exports.py",
        "lightning_modules/test_classifier.py",
    ],
    "datamodules/augment.py": ["datamodules/test_augment.py", "test_gpu_rehearsal.py"],
    "datamodules/batches.py": ["datamodules/test_batches.py", "test_gpu_rehearsal.py"],
    "experiments/significance.py": ["experiments/test_significance.py"],
    "experiments/groups.py": ["experiments/test_groups.py"],
}
# (file, what stands there, what is put in its place)
FAULTS = [
    (
        "muon",
        'updates = self._nesterov(params, [p.grad for p in params], group["momentum"])',
        "updates = [p.grad for p in params]",
    ),
    ("muon", "p.mul_(len(p) ** 0.5 /", "p.mul_(p.shape[1] ** 0.5 /"),
    ("muon", 'alpha=-group["lr"])\n\n    def _step_sgd', 'alpha=group["lr"])\n\n    def _step_sgd'),
    (
        "muon",
        'orthogonalize(update.flatten(1), group["iterations"])',
        "orthogonalize(update.flatten(1))",
    ),
    ("muon", 'group["weight_decay"] / group["peak_lr"]', 'group["weight_decay"] / group["lr"]'),
    (
        "muon",
        "torch._foreach_add(gradients, buffers, alpha=momentum)",
        "torch._foreach_add(gradients, buffers)",
    ),
    ("muon", "tall = len(matrix) > matrix.shape[1]", "tall = False"),
    ("muon", "return x.T if tall else x", "return x"),
    ("muon", "x = x / (x.norm() + 1e-7)", "x = x / x.norm()"),
    ("muon", "if not 0 <= value < 1:", "if not 0 <= value <= 1:"),
    ("muon", "if closure is not None:", "if closure is None:"),
    ("muon", "torch.zeros_like(gradient)", "torch.zeros(gradient.shape)"),
    ("muon", 'group["sgd_momentum"])\n', 'group["momentum"])\n'),
    (
        "schedules",
        "min(step / (self.total_steps or math.inf), 1.0)",
        "step / (self.total_steps or math.inf)",
    ),
    ("schedules", "if part < self.warmup:", "if part <= self.warmup:"),
    ("schedules", "(1 - part) / (1 - self.warmup)", "(1 - part)"),
    ("schedules", "(1 - self.start) * part", "(1 - self.start) + part"),
    ("schedules", "if start < 0 or end < 0:", "if end < 0:"),
    ("schedules", '{**state_dict, "total_steps": self.total_steps}', "state_dict"),
    ("classifier", "label_smoothing=self.label_smoothing)", "label_smoothing=0.0)"),
    ("classifier", "if every < 1 or trainer.global_step % every:", "if every < 1:"),
    ("classifier", "not trainer.fit_loop.epoch_loop._should_accumulate()", "True"),
    ("classifier", "_WINDOW = 64", "_WINDOW = 3"),
    ("classifier", "self._take_latest()\n        if not self._window:", "if not self._window:"),
    ("classifier", "self._noted[:0]\n        loss", "self._noted\n        loss"),
    ("classifier", "if not self.trainer.ckpt_path:", "if True:"),
    ("classifier", "if not self.trainer.ckpt_path:", "if False:"),
    (
        "classifier",
        "self._latest = None\n        self._window.clear()\n        if",
        "self._window.clear()\n        if",
    ),
    ("classifier", "batch_idx, self.global_rank)", "self.global_rank)"),
    ("classifier", "place = (int(self._seed), ", "place = (0, "),
    ("classifier", "torch.cuda.manual_seed(seed)", "pass"),
    ("classifier", "losses @ images, correct.sum()", "losses.sum(), correct.sum()"),
    (
        "classifier",
        "math.isfinite(loss):\n            raise",
        "math.isfinite(loss) and False:\n            raise",
    ),
    ("classifier", "self.step_figures.clear()", "pass"),
    ("classifier", "trainer.global_step - 1)", "trainer.global_step)"),
    (
        "classifier",
        "matrix.update(logits.argmax(1), labels)",
        "matrix.update(labels, logits.argmax(1))",
    ),
    (
        "classifier",
        "confusion.trace() / confusion.sum()",
        "confusion.diag().mean() / confusion.sum()",
    ),
    ("classifier", "        matrix.reset()\n", ""),
    ("classifier", "        mean_loss.reset()\n", ""),
    ("classifier", 'if name == "val" and not loss.isfinite():', "if False:"),
    (
        "classifier",
        'self._log_evaluation("val", "validate" if self.trainer.state.fn == "validate" else "val")',
        'self._log_evaluation("val", "val")',
    ),
    ("classifier", '"interval": self.lr_interval', '"interval": "step"'),
    ("classifier", 'plan["monitor"] = monitor', "pass"),
    ("classifier", "scheduler.total_steps = self._steps_of_fit()", "scheduler.total_steps = 100"),
    (
        "classifier",
        "self._noted = torch.cat([self._noted.to(rows.device), rows])",
        "self._noted = torch.cat([self._noted, rows])",
    ),
    (
        "classifier",
        "return matrix.to(self.device), mean_loss.to(self.device)",
        "return matrix, mean_loss",
    ),
    (
        "classifier",
        "self.evaluate(batch[0]).float().softmax(1)",
        "self.evaluate(batch[0]).float().softmax(0)",
    ),
    ("classifier", '"noted": torch.stack(noted).cpu()', '"noted": torch.stack(noted)[:, :0].cpu()'),
    ("classifier", 'self.confusion = dict(measured["confusion"])', "pass"),
    ("mlp", "layers.append(activate())", "layers.append(nn.ELU())"),
    ("mlp", "nn.init.normal_(layer.weight, std=std)", "nn.init.normal_(layer.weight, std=std**2)"),
    ("mlp", "nn.init.zeros_(layer.bias)", "pass"),
    ("mlp", "any(width < 1", "any(width < 0"),
    ("mlp", "if weight_std is not None:", "if weight_std:"),
    ("mlp", '"layer": LayerNorm', '"layer": nn.LayerNorm'),
    ("mlp", "if std < 0:", "if std < -1:"),
    ("cnn", "return x + branch", "return branch"),
    ("cnn", 'inplace=order == "bn_relu_conv"', "inplace=True"),
    ("cnn", "nn.MaxPool2d(3, stride=2, padding=1)", "nn.MaxPool2d(2, stride=2)"),
    ("cnn", "if final_norm:", "if not final_norm:"),
    ("cnn", "images = images.to(memory_format=torch.channels_last)", "pass"),
    ("cnn", "Adam(p, lr=1e-4)", "Adam(p, lr=1e-3)"),
    ("cnn", "_stage(256, 512, blocks=2", "_stage(256, 512, blocks=1"),
    ("fast_cnn", "if self.training and self._bias_is_frozen:", "if self._bias_is_frozen:"),
    ("fast_cnn", "bias = bias.detach()", "pass"),
    ("fast_cnn", "self.trainer.world_size == 1 and progress", "progress"),
    ("fast_cnn", "progress >= self.whiten_bias_until", "progress > self.whiten_bias_until"),
    ("fast_cnn", "_WHITENING_EPS = 5e-4", "_WHITENING_EPS = 5e-2"),
    ("fast_cnn", "torch.cat([filters, -filters])", "torch.cat([filters, filters])"),
    ("fast_cnn", "antialias=True", "antialias=False"),
    (
        "fast_cnn",
        "(in_place + torch.stack(shifted).mean(0)) / 2",
        "torch.stack([in_place, *shifted]).mean(0)",
    ),
    ("fast_cnn", "for i in (0, 2)]", "for i in (0, 1)]"),
    ("fast_cnn", "if not self.whitened:", "if True:"),
    ("fast_cnn", "eps=1e-12, momentum=momentum", "eps=1e-12"),
    ("fast_cnn", "    norm.weight.requires_grad_(False)\n", ""),
    ("fast_cnn", "self.whiten.weight.requires_grad_(False)", "pass"),
    ("fast_cnn", ".to(self.device))", ")"),
    ("fast_cnn", "self.groups.compile()", "pass"),
    ("fast_cnn", "std=1 / 256", "std=1 / 16"),
    ("fast_cnn", "self._plain.argmax(1)", "outputs.argmax(1)"),
    ("numpy_mlp", "self.bias.grad = torch.from_numpy(self.op.grad_bias)", "pass"),
    (
        "numpy_mlp",
        "for operation in reversed(self._operations()):",
        "for operation in self._operations():",
    ),
    ("numpy_mlp", "self.op.weight = self.weight.detach().numpy()", "pass"),
    ("numpy_mlp", 'self._step_schedule("step")', "pass"),
    ("numpy_mlp", 'self._step_schedule("epoch")', "pass"),
    ("numpy_mlp", 'reduce_op="mean"', 'reduce_op="sum"'),
    (
        "numpy_mlp",
        "rng = np.random.default_rng(int(torch.randint(2**62, ())))",
        "rng = np.random.default_rng(0)",
    ),
    ("numpy_mlp", 'if trainer.precision != "32-true":', "if False:"),
    (
        "numpy_mlp",
        '("accumulate_grad_batches", 1)',
        '("accumulate_grad_batches", trainer.accumulate_grad_batches)',
    ),
    ("numpy_mlp", "if traced or type(images) not in _PLAIN:", "if type(images) not in _PLAIN:"),
    ("datamodules/augment", "(self.seed, epoch, 1)", "(self.seed, 1)"),
    ("datamodules/augment", "2 * self.crop + 1", "2 * self.crop"),
    ("datamodules/augment", "bool(epoch % 2)", "bool(epoch % 3)"),
    ("datamodules/augment", 'mode="reflect"', 'mode="replicate"'),
    ("datamodules/augment", "images.flip(3)", "images.flip(2)"),
    ("datamodules/augment", "- self.cutout // 2", "- self.cutout"),
    ("datamodules/augment", "position < start + self.cutout", "position <= start + self.cutout"),
    ("datamodules/augment", "position >= start", "position > start"),
    ("datamodules/augment", "(self.seed, 2)", "(0, 2)"),
    ("datamodules/augment", "rows[:, None, :, None]", "columns[:, None, :, None]"),
    (
        "datamodules/augment",
        "self._shifts = torch.from_numpy(shifts).to(self.device)",
        "self._shifts = torch.from_numpy(shifts)",
    ),
    (
        "datamodules/augment",
        "torch.from_numpy(mirrored).to(self.device)",
        "torch.from_numpy(mirrored)",
    ),
    ("datamodules/augment", "(2, count))).to(self.device)", "(2, count)))"),
    ("datamodules/augment", "images.new_zeros(1)", "torch.zeros(1, dtype=torch.uint8)"),
    (
        "datamodules/augment",
        "torch.arange(self.size, device=self.device)",
        "torch.arange(self.size)",
    ),
    ("datamodules/batches", "[self.rank :: self.world_size]", "[:: self.world_size]"),
    ("datamodules/batches", ".to(self.tensors[-1].device)", ""),
    ("datamodules/batches", "(self.shuffle_seed, self.epoch)", "(self.shuffle_seed, 0)"),
    (
        "datamodules/batches",
        "self._served, self._first = self._first, 0",
        "self._served = self._first",
    ),
    (
        "datamodules/batches",
        "return total // self.world_size",
        "return -(-total // self.world_size)",
    ),
    ("datamodules/batches", "self._served % len(self)", "self._served"),
    ("datamodules/batches", "(rest > 0 and not self.drop_last)", "(rest > 0)"),
    ("datamodules/batches", "tensor.set_epoch(epoch)", "pass"),
    ("experiments/significance", "FEWEST = 3", "FEWEST = 2"),
    ("experiments/significance", "LEVEL = 0.95", "LEVEL = 0.9"),
    ("experiments/significance", "equal_var=False", "equal_var=True"),
    ("experiments/significance", "and min(ours) >= 0", ""),
    ("experiments/significance", "(1 + LEVEL) / 2", "LEVEL"),
    ("experiments/significance", "n - 1))", "n))"),
    ("experiments/significance", "(1 + 1 / n) ** 0.5", "(1 / n) ** 0.5"),
    (
        "experiments/significance",
        "n = min(len(ours), len(theirs))",
        "n = max(len(ours), len(theirs))",
    ),
    ("experiments/significance", "statistics.stdev(values)", "statistics.pstdev(values)"),
    (
        "experiments/significance",
        "ours[seed] - theirs[seed] for seed in ours])",
        "theirs[seed] - ours[seed] for seed in ours])",
    ),
    (
        "experiments/significance",
        "statistics.fmean(a) - statistics.fmean(b)",
        "statistics.fmean(b) - statistics.fmean(a)",
    ),
    (
        "experiments/significance",
        'mean, mean, float(mean == 0), "Welch t"',
        'mean, mean, float(mean != 0), "Welch t"',
    ),
    ("experiments/groups", "statistics.fmean(several)", "several[0]"),
    ("experiments/groups", "-position if run.seed is None else run.seed", "run.seed or 0"),
    ("experiments/groups", "count > 1]", "count > 2]"),
    ("experiments/groups", "choose = min if is_loss(metric) else max", "choose = max"),
]


def path_of(name: str) -> str:
    """The file of a fault."""
    return f"{name if '/' in name else f'lightning_modules/{name}'}.py"


def outcome(copy: Path, file: str, old: str, new: str, tests: list[str]) -> str:
    """Whether tests notice a fault: ``noticed``, ``SURVIVES``, or ``stale`` if it can't be put in."""
    path = copy / file
    text = path.read_text()
    if old not in text:
        return "stale"
    path.write_text(text.replace(old, new, 1))
    survives = all(passes(copy, test) for test in tests)
    path.write_text(text)
    return "SURVIVES" if survives else "noticed"


def passes(copy: Path, test: str) -> bool:
    """Whether a file of tests passes, in a process of its own."""
    alone = "tests.conftest" not in (copy / test).read_text()  # then it is quick
    args = ["-x", "-q", "-n0", "-pno:cacheprovider", *["--noconftest"] * alone, test]
    child = os.fork()
    if child == 0:
        os.chdir(copy)
        sys.path.insert(0, str(copy))
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            code = pytest.main(args)
        os._exit(int(code))
    return os.waitpid(child, 0)[1] == 0


def main(words: list[str]) -> None:
    """Tries the faults."""
    tally = {"noticed": 0, "SURVIVES": 0, "stale": 0}
    whole = set[str]()
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "checkout"
        shutil.copytree(PROJECT, copy, ignore=shutil.ignore_patterns(".*", "runs", "data", "*.pyc"))
        sys.dont_write_bytecode = True
        for name, old, new in FAULTS:
            file = path_of(name)
            if words and not any(word in f"{file} {old}" for word in words):
                continue
            tests = [f"tests/{test}" for test in TESTS[file]]
            if file not in whole:
                assert outcome(copy, file, "", "", tests) == "SURVIVES", f"{tests} fail anyway"
                whole.add(file)
            found = outcome(copy, file, old, new, tests)
            tally[found] += 1
            print(f"{found:9} {file}: {old!r} -> {new!r}", flush=True)
    print(tally)


if __name__ == "__main__":
    for library in ("hypothesis", "jsonargparse", "matplotlib.pyplot", "pandas", "PIL.Image"):
        importlib.import_module(library)  # once, not in every child
    for library in ("pytorch_lightning.cli", "scipy.stats", "torchmetrics.classification"):
        importlib.import_module(library)
    for library in ("torchvision", "tqdm", "wandb", "yaml"):
        importlib.import_module(library)
    main(sys.argv[1:])
