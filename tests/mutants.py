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
import signal
import sys
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent
_LONGEST_S = 300  # for one file of tests; a fault that makes it hang counts as noticed
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
    "lightning_modules/measures.py": [
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
    "datamodules/transforms.py": ["datamodules/test_transforms.py", "test_gpu_rehearsal.py"],
    "datamodules/batches.py": ["datamodules/test_batches.py", "test_gpu_rehearsal.py"],
    "experiments/analysis/significance.py": ["experiments/analysis/test_significance.py"],
    "experiments/analysis/verdicts.py": ["experiments/analysis/test_verdicts.py"],
    "experiments/analysis/chance.py": ["experiments/analysis/test_chance.py"],
    "experiments/reproduction/judges.py": ["experiments/reproduction/test_claims.py"],
    "experiments/reproduction/kept.py": ["experiments/reproduction/test_kept.py"],
    "experiments/records/curves.py": ["experiments/records/test_curves.py"],
    "experiments/analysis/groups.py": ["experiments/analysis/test_groups.py"],
    "experiments/identity.py": ["experiments/test_identity.py"],
    "experiments/records/log.py": ["experiments/records/test_record.py"],
    "experiments/records/record.py": [
        "experiments/records/test_record.py",
        "test_ownership.py",
        "experiments/checkpoints/test_evaluations.py",
    ],
    "experiments/checkpoints/evaluations.py": ["experiments/checkpoints/test_evaluations.py"],
    "experiments/records/trust.py": ["experiments/records/test_trust.py"],
    "experiments/records/files.py": [
        "experiments/records/test_files.py",
        "experiments/records/test_record.py",
        "test_ownership.py",
    ],
    "experiments/records/reader.py": [
        "experiments/records/test_reader.py",
        "experiments/records/test_record.py",
    ],
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
        "foreach_add(gradients, buffers, alpha=momentum)",
        "foreach_add(gradients, buffers)",
    ),
    ("muon", "factor.diagonal().add_(a)", "factor.diagonal().add_(1)"),
    ("muon", "product = factor @ product", "product = factor"),
    ("muon", "gram = factor @ gram @ factor", "gram = factor @ gram"),
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
    ("classifier", "is_last and not trainer.strategy.handles_gradient_accumulation", "True"),
    ("classifier", "batches % trainer.accumulate_grad_batches == 0", "False"),
    ("measures", "_WINDOW = 64", "_WINDOW = 3"),
    ("measures", "if self._latest is None else [*self._window, self._latest]", ""),
    ("measures", "self.forget()\n        return rows", "return rows"),
    ("classifier", "unfolded_alone=goes_on", ""),
    ("classifier", "unfolded_alone=goes_on", "unfolded_alone=True"),
    ("measures", "self._latest = None\n        self._window.clear()\n", "self._window.clear()\n"),
    ("classifier", "batch_idx, self.global_rank)", "self.global_rank)"),
    ("classifier", "place = (int(self._seed), ", "place = (0, "),
    ("classifier", "torch.cuda.manual_seed(seed)", "pass"),
    ("measures", "losses @ images, correct.sum()", "losses.sum(), correct.sum()"),
    (
        "classifier",
        "math.isfinite(loss):\n            raise",
        "math.isfinite(loss) and False:\n            raise",
    ),
    ("classifier", "self.step_figures.clear()", "pass"),
    ("classifier", "trainer.global_step - 1)", "trainer.global_step)"),
    (
        "measures",
        "matrix.update(logits.argmax(1), labels)",
        "matrix.update(labels, logits.argmax(1))",
    ),
    (
        "measures",
        "confusion.trace() / confusion.sum()",
        "confusion.diag().mean() / confusion.sum()",
    ),
    ("measures", "        self.matrix.reset()\n", ""),
    ("measures", "        self.mean_loss.reset()\n", ""),
    ("measures", 'if name == "val" and not loss.isfinite():', "if False:"),
    (
        "measures",
        'self._log_evaluation("val", "validate" if self.trainer.state.fn == "validate" else "val")',
        'self._log_evaluation("val", "val")',
    ),
    ("classifier", '"interval": self.lr_interval', '"interval": "step"'),
    ("classifier", 'plan["monitor"] = monitor', "pass"),
    ("classifier", "steps_to_schedule(self.trainer_if_any())", "100"),
    (
        "measures",
        "self.noted = torch.cat([self.noted.to(rows.device), rows])",
        "self.noted = torch.cat([self.noted, rows])",
    ),
    (
        "measures",
        "self.matrix.to(device)\n",
        "pass\n",
    ),
    (
        "measures",
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
    (
        "numpy_mlp",
        "if traced or type(images) not in _TENSOR_TYPES:",
        "if type(images) not in _TENSOR_TYPES:",
    ),
    ("datamodules/transforms", "(self.seed, epoch, 1)", "(self.seed, 1)"),
    ("datamodules/transforms", "2 * self.crop + 1", "2 * self.crop"),
    ("datamodules/transforms", "bool(epoch % 2)", "bool(epoch % 3)"),
    ("datamodules/transforms", 'mode="reflect"', 'mode="replicate"'),
    ("datamodules/transforms", "images.flip(3)", "images.flip(2)"),
    ("datamodules/transforms", "- self.cutout // 2", "- self.cutout"),
    ("datamodules/transforms", "position < start + self.cutout", "position <= start + self.cutout"),
    ("datamodules/transforms", "position >= start", "position > start"),
    ("datamodules/transforms", "(self.seed, 2)", "(0, 2)"),
    ("datamodules/transforms", "rows[:, None, :, None]", "columns[:, None, :, None]"),
    (
        "datamodules/transforms",
        "self._shifts = torch.from_numpy(shifts).to(self.device)",
        "self._shifts = torch.from_numpy(shifts)",
    ),
    (
        "datamodules/transforms",
        "torch.from_numpy(mirrored).to(self.device)",
        "torch.from_numpy(mirrored)",
    ),
    ("datamodules/transforms", "(2, count))).to(self.device)", "(2, count)))"),
    ("datamodules/transforms", "images.new_zeros(1)", "torch.zeros(1, dtype=torch.uint8)"),
    (
        "datamodules/transforms",
        "torch.arange(self.size, device=self.device)",
        "torch.arange(self.size)",
    ),
    ("datamodules/batches", "[self.rank :: self.world_size]", "[:: self.world_size]"),
    ("datamodules/batches", ".to(self.tensors[-1].device)", ""),
    ("datamodules/batches", "epoch = 0 if self.repeats else self.epoch", "epoch = 0"),
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
    ("experiments/analysis/significance", "FEWEST = 3", "FEWEST = 2"),
    ("experiments/analysis/significance", "LEVEL = 0.95", "LEVEL = 0.9"),
    ("experiments/analysis/significance", "square**2 / (len(v) - 1)", "square**2 / len(v)"),
    ("experiments/analysis/significance", "sum(squares) ** 0.5", "max(squares) ** 0.5"),
    ("experiments/analysis/significance", "float(self.mean <= bound)", "float(self.mean < bound)"),
    ("experiments/analysis/significance", "float(self.mean >= bound)", "float(self.mean > bound)"),
    ("experiments/analysis/significance", "2 * min(self.above(bound)", "min(self.above(bound)"),
    ("experiments/analysis/significance", "max(self.above(-margin)", "min(self.above(-margin)"),
    ("experiments/analysis/significance", "(len(known) - rank) * p", "len(known) * p"),
    ("experiments/analysis/significance", "max(largest, min(1.0", "max(0.0, min(1.0"),
    ("experiments/analysis/significance", "** (count - 1)", "** count"),
    ("experiments/analysis/verdicts", "if self.holm >= ALPHA", "if self.difference.p >= ALPHA"),
    ("experiments/analysis/verdicts", "self.equivalence_holm < ALPHA", "self.equivalence < ALPHA"),
    ("experiments/analysis/verdicts", "or metric in CHEAPER", ""),
    ("experiments/analysis/chance", "if count <= MANY", "if count < MANY"),
    ("experiments/analysis/chance", "max(0.0, value * (1 - value))", "value * (1 - value)"),
    ("experiments/analysis/chance", "deviation / len(values) ** 0.5", "deviation"),
    ("experiments/reproduction/judges", "if self.fails < ALPHA", "if self.fails <= ALPHA"),
    ("experiments/reproduction/judges", "POINT if self.allows_small else 0.0", "0.0"),
    ("experiments/reproduction/judges", "in holm([e", "in list([e"),
    ("experiments/reproduction/judges", "if of_accuracy else 1.0", ""),
    ("experiments/reproduction/kept", "if seed not in over", ""),
    ("experiments/reproduction/kept", 'or k == "data.seed"', ""),
    ("experiments/reproduction/kept", "if key not in _KEPT", ""),
    ("experiments/analysis/significance", "and min(ours) >= 0", ""),
    ("experiments/analysis/significance", "(1 + level) / 2", "level"),
    ("experiments/analysis/significance", 'n - 1, "one-sample t"', 'n, "one-sample t"'),
    ("experiments/analysis/significance", "(1 + 1 / n) ** 0.5", "(1 / n) ** 0.5"),
    (
        "experiments/analysis/significance",
        "n = min(len(ours), len(theirs))",
        "n = max(len(ours), len(theirs))",
    ),
    ("experiments/analysis/significance", "statistics.stdev(values)", "statistics.pstdev(values)"),
    (
        "experiments/analysis/significance",
        "ours[seed] - theirs[seed] for seed in ours]",
        "theirs[seed] - ours[seed] for seed in ours]",
    ),
    (
        "experiments/analysis/significance",
        "statistics.fmean(a) - statistics.fmean(b)",
        "statistics.fmean(b) - statistics.fmean(a)",
    ),
    ("experiments/analysis/significance", "if sum(parts) else n - 1", ""),
    ("experiments/analysis/groups", "statistics.fmean(several)", "several[0]"),
    ("experiments/analysis/groups", "-position if run.seed is None else run.seed", "run.seed or 0"),
    ("experiments/analysis/groups", "count > 1]", "count > 2]"),
    (
        "experiments/records/curves",
        "if is_loss(metric) else value > than",
        "if False else value > than",
    ),
    ("experiments/records/curves", "else value > than", "else value >= than"),
    ("experiments/records/curves", "since is None or step > since", "True"),
    ("experiments/records/curves", "step > since", "step >= since"),
    ("experiments/records/curves", "sorted(points.items())", "points.items()"),
    ("experiments/records/curves", "return not math.isnan(value)", "return True"),
    ("experiments/analysis/groups", "stopped if stopped.startswith(MAX_TIME) else None", "None"),
    ("experiments/analysis/groups", "stopped if stopped.startswith(MAX_TIME) else None", "stopped"),
    (
        "experiments/records/record",
        "self._known = copy.deepcopy(fields)",
        "self._known = fields",
    ),
    (
        "experiments/records/record",
        "self._known = copy.deepcopy(merged)",
        "self._known = merged",
    ),
    ("experiments/records/record", "self._known if theirs is None else theirs", "self._known"),
    (
        "experiments/records/record",
        "self._known if theirs is None else theirs",
        "{} if theirs is None else theirs",
    ),
    (
        "experiments/records/record",
        "found := other if ours == was else ours",
        "found := ours if other == was else other",
    ),
    ("experiments/records/record", 'self._file.count_as_changed("evaluations", [key])', "pass"),
    ("experiments/records/record", 'self._file.count_as_changed("summary", summary)', "pass"),
    ("experiments/records/record", "(path / RECORD).unlink(missing_ok=True)", "pass"),
    (
        "experiments/records/record",
        "self.fields = self._file.read(self.fields)",
        "pass",
    ),
    (
        "experiments/records/log",
        '(entry["step"] or 0) <= step and',
        '(entry["step"] or 0) < step and',
    ),
    ("experiments/records/log", "<= step and step > 0", "<= step"),
    ("experiments/records/log", "return not is_evaluation_entry(entry) and", "return"),
    (
        "experiments/records/record",
        "is_fit_entry(entry, step)][:entries]",
        "is_fit_entry(entry, step)]",
    ),
    (
        "experiments/records/record",
        "self.entries += not is_evaluation_entry(entry)",
        "self.entries += 1",
    ),
    ("experiments/records/record", 'self.fields.get("best_since", -1)', "-1"),
    ("experiments/records/record", "self._before = (kept", "self._before = 0.0 and (kept"),
    ("experiments/records/record", "for pattern in _RESULT_FILES:", "for pattern in ():"),
    ("experiments/records/record", '    "weights",\n    "chosen",\n', ""),
    (
        "experiments/records/record",
        "with nullcontext() if self.is_owner else self._file.alone():",
        "with nullcontext():",
    ),
    ("experiments/records/log", "if (run / METRICS).is_file():", "if False:"),
    ("experiments/records/log", 'elif line.endswith("\\n"):', "else:"),
    ("experiments/records/record", "check_folder(path)\n", "pass\n"),
    ("experiments/records/record", "locks = {LOCK, RECORD_LOCK}", "locks = {LOCK}"),
    (
        "experiments/records/record",
        "if len(os.fsencode(name)) > _LONGEST_NAME:",
        "if len(name) > _LONGEST_NAME:",
    ),
    (
        "experiments/records/record",
        'name.startswith("-") or not name.isprintable()',
        "not name.isprintable()",
    ),
    ("experiments/identity", "|lr_interval|label_smoothing)", "|lr_interval)"),
    ("experiments/identity", "|data\\.normalization", ""),
    ("experiments/identity", "|trainer\\.precision", ""),
    ("experiments/identity", "data\\.(val_size|split_seed)", "data\\.val_size"),
    ("experiments/identity", '(r"seed_everything", Kind(name=False, group=False)),', ""),
    ("experiments/identity", ').replace(".init_args.", ".")', ")"),
    ("experiments/identity", "LEARNING_RATE_LONG if key == LEARNING_RATE else key", "key"),
    ("experiments/identity", "name if len(name) <= _LONGEST else", "name[:_LONGEST] or"),
    ("experiments/identity", 'flag == f"--{LEARNING_RATE}"', "flag.startswith(LEARNING_RATE, 2)"),
    ("experiments/identity", "(group=False, resume=False)),  # unless", "(resume=False)),  #"),
    ("experiments/identity", "if kind_of(key).name\n", ""),
    ("experiments/identity", " if kind_of(key).group}", "}"),
    ("experiments/identity", " and kind_of(key).resume", ""),
    ("experiments/identity", " and kind_of(key).claim", ""),
    ("experiments/identity", "{**_IMPLIED_SETTINGS, **asked}", "{**asked}"),
    ("experiments/identity", 'asked.pop("trainer.precision", None)', "pass"),
    ("experiments/identity", "(-\\d+)?)?$", ")?$"),
    (
        "experiments/checkpoints/evaluations",
        '(stage == "validate" and kind_of(key).validation)',
        "kind_of(key).validation",
    ),
    (
        "experiments/checkpoints/evaluations",
        "is_limited(ours.get(key), batches) and ours.get(key) != runs.get(key)",
        "is_limited(ours.get(key), batches)",
    ),
    (
        "experiments/checkpoints/evaluations",
        "limit < 1 if isinstance(limit, float) else limit < batches",
        "limit < batches",
    ),
    ("experiments/checkpoints/evaluations", "else limit < batches", "else limit <= batches"),
    (
        "experiments/checkpoints/evaluations",
        "if self.identity and file_identity(self.checkpoint) != self.identity:",
        "if False:",
    ),
    (
        "experiments/checkpoints/evaluations",
        'if self.belongs_to_run and self.stage != "predict":',
        'if self.stage != "predict":',
    ),
    (
        "experiments/checkpoints/evaluations",
        "self.checkpoint.name if inside else str(self.checkpoint)",
        "self.checkpoint.name",
    ),
    (
        "experiments/checkpoints/evaluations",
        '| ({"folder": str(self.folder)} if self.folder else {})',
        "",
    ),
    ("experiments/checkpoints/evaluations", "return not hashes or sha256 in hashes", "return True"),
    (
        "experiments/checkpoints/evaluations",
        "if not is_in_folder(checkpoint, record.path) or checkpoint.stem",
        "if checkpoint.stem",
    ),
    (
        "experiments/checkpoints/evaluations",
        "record.path) or checkpoint.stem not in {BEST, LAST}:",
        "record.path):",
    ),
    (
        "experiments/checkpoints/evaluations",
        'if checkpoint.name != chosen == there.get("checkpoint"):',
        "if False:",
    ),
    ("experiments/checkpoints/evaluations", "known.get(checkpoint.name, sha256) == sha256", "True"),
    (
        "experiments/checkpoints/evaluations",
        "set_aside(record, key)\n        record.save()",
        "record.save()",
    ),
    (
        "experiments/checkpoints/evaluations",
        "set_aside(record, key)\n        record.save()",
        "set_aside(record, key)",
    ),
    (
        "experiments/checkpoints/evaluations",
        'LAST if record.fields.get("chosen") == LAST else BEST',
        "BEST",
    ),
    (
        "experiments/checkpoints/evaluations",
        "if known := RunRecord.open(run)",
        "if known := False and RunRecord.open(run)",
    ),
    (
        "experiments/checkpoints/evaluations",
        "if file_identity(path) == evaluation.identity:",
        "if True:",
    ),
    (
        "experiments/checkpoints/evaluations",
        "path.is_file() and checkpoint_sha256(path) == sha256",
        "path.is_file()",
    ),
    ("experiments/checkpoints/evaluations", 'if not entry["differs"] and entry', "if entry"),
    (
        "experiments/checkpoints/evaluations",
        "record.summary.pop(name) for name in names",
        "record.summary[name] for name in names",
    ),
    (
        "experiments/checkpoints/evaluations",
        "if (path := record.path / name).is_file():",
        "if False and (path := record.path):",
    ),
    (
        "experiments/records/trust",
        "for found in _IMPORT_PATH.findall(argument)}",
        "for found in [argument]}",
    ),
    ("experiments/records/trust", '.partition("=")[0].rstrip', ".rstrip"),
    ("experiments/records/trust", "next(_problems(path, set(), set()), None) is None or", ""),
    ("experiments/records/trust", "mode=0o700, ", ""),
    (
        "experiments/records/trust",
        'if short in {"config", "ckpt_path"} or',
        'if short in {"config"} or',
    ),
    ("experiments/records/trust", 'last == "class_path" or (_IMPORT', "False or (_IMPORT"),
    (
        "experiments/records/trust",
        "(_IMPORT_PATH.fullmatch(value) and _is_importable(value))",
        "False",
    ),
    ("experiments/records/trust", ", re.IGNORECASE)", ")"),
    ("experiments/records/trust", "{*_READ_ONLY, *given}", "_READ_ONLY"),
    ("experiments/records/trust", '"data.predict_dir", "model.weights"', '"data.predict_dir"'),
    ("experiments/records/trust", 'r"(.*_)?(dir|', 'r"(dir|'),
    ("experiments/records/trust", "(/|~|\\\\|", "(/|\\\\|"),
    (
        "experiments/records/trust",
        "|pytorch_lightning|lightning_fabric)(\\..*)?",
        "|pytorch_lightning|lightning_fabric).*",
    ),
    ("experiments/records/trust", "isinstance(found, type) and bool(", "bool("),
    ("experiments/records/trust", " and bool(_MODULES.fullmatch(found.__module__))", ""),
    ("experiments/records/trust", 'inner, key = None, f"{key}.class_path"', "inner = None"),
    ("experiments/records/trust", " or (isinstance(inner, str) and inner != tree)", ""),
    (
        "experiments/records/trust",
        "here is not None or find_spec(root) is not None",
        "find_spec(root) is not None",
    ),
    (
        "experiments/records/trust",
        "here is not None or find_spec(root) is not None",
        "here is not None",
    ),
    ("experiments/records/trust", "for place in (Path(), run))", "for place in (run,))"),
    ("experiments/records/trust", ' and asked.get("data.source") == official.source', ""),
    (
        "experiments/records/trust",
        "isinstance(images, int) and is_made(folder, images, official)",
        "folder.is_dir()",
    ),
    (
        "experiments/records/trust",
        ".expanduser().resolve().is_relative_to(run.resolve())",
        ".expanduser().is_relative_to(run)",
    ),
    ("experiments/records/files", "_check_size(len(content), largest)", "pass"),
    ("experiments/records/files", "_check_size(size, largest)  # it", "pass  # it"),
    ("experiments/records/files", 'line.decode("utf-8", "replace")', 'line.decode("utf-8")'),
    ("experiments/records/files", "flags | _NEVER_WAIT", "flags"),
    (
        "experiments/records/files",
        "_check_kind(path.stat().st_mode if path.exists() else stat.S_IFREG)",
        "pass",
    ),
    ("experiments/records/files", "_check_kind(os.fstat(file.fileno()).st_mode)", "pass"),
    (
        "experiments/records/files",
        "with open_regular(path, mode, _NO_LINKS) as file:",
        "with open_regular(path, mode) as file:",
    ),
    ("experiments/records/files", "os.fsync(file.fileno())", "pass"),
    (
        "experiments/records/files",
        'with open_regular(path, "a", _NO_LINKS) as file:',
        'with open_regular(path, "a") as file:',
    ),
    ("experiments/records/files", "path.stat().st_nlink > 1:", "path.stat().st_nlink > 2:"),
    ("experiments/records/files", "_remove_leftovers(path)\n    partial", "partial"),
    ("experiments/records/files", "partial.unlink(missing_ok=True)\n", "pass\n"),
    ("experiments/records/files", "{secrets.token_hex(4)}", "{os.getpid()}"),
    ("experiments/records/files", "_NO_LINKS, 0o666)", "_NO_LINKS, 0o600)"),
    ("experiments/records/files", "if os.fstat(descriptor).st_nlink:", "if True:"),
    ("experiments/records/files", "fcntl.LOCK_EX | (", "fcntl.LOCK_SH | ("),
    (
        "experiments/records/files",
        'raise RunError(f"{what} is locked by another process for a minute: end that one") from error',
        "pass",
    ),
    (
        "experiments/records/files",
        "except (OSError, NotImplementedError):",
        "except NotImplementedError:",
    ),
    (
        "experiments/records/files",
        "found.st_dev, found.st_ino, found.st_size",
        "found.st_dev, found.st_size",
    ),
    ("experiments/records/files", "found.st_size, found.st_mtime_ns", "found.st_size"),
    (
        "experiments/records/files",
        '"wandb/artifacts", "wandb/artifacts/staging")',
        '"wandb/artifacts")',
    ),
    ("experiments/records/files", "not in _KEPT_OPEN and not of_wandb", "not in _KEPT_OPEN"),
    ("experiments/records/files", "own = of_wandb and entry", "own = entry"),
    (
        "experiments/records/files",
        '_KEPT_OPEN = {*_LOCKS, "metrics.jsonl"}',
        "_KEPT_OPEN = {*_LOCKS}",
    ),
    ("experiments/records/files", "_LOCKS = {LOCK, RECORD_LOCK}", "_LOCKS = {LOCK}"),
    (
        "experiments/records/files",
        "if entry.is_dir() and not entry.is_symlink():",
        "if entry.is_dir():",
    ),
    ("experiments/records/reader", '"CSafeLoader"', '"CUnsafeLoader"'),
    (
        "experiments/records/reader",
        'text.count("[") + text.count("{") > _DEEPEST',
        'text.count("[") > _DEEPEST',
    ),
    ("experiments/records/reader", "total += sizes.get(str(event.anchor), 1)", "total += 1"),
    (
        "experiments/records/reader",
        "if event.anchor in {anchor for anchor, _ in open_ones}:",
        "if False:",
    ),
    ("experiments/records/reader", "bool(_NUMBER.fullmatch(word))", "bool(_NUMBER.match(word))"),
    (
        "experiments/records/reader",
        "len(word) > _LONGEST_NUMBER and bool(_NUMBER.fullmatch(word))",
        "word.isdigit() and len(word) > _LONGEST_NUMBER",
    ),
    ("experiments/records/reader", "if len(open_ones) > _DEEPEST:", "if False:"),
    ("experiments/records/reader", "if v is not None or k not in _REQUIRED_VALUES}", "}"),
    ("experiments/records/reader", "if key in _REQUIRED_VALUES and None in values:", "if False:"),
    ("experiments/records/reader", '    "weights": str,\n', ""),
    ("experiments/records/reader", '"parameters", "best_since")', '"parameters")'),
    ("experiments/records/reader", " and not isinstance(value, bool)\n", "\n"),
    ("experiments/records/reader", "|images_per_s|peak_gpu_mib|flops)", "|peak_gpu_mib|flops)"),
    (
        "experiments/records/reader",
        "read_text(path, LARGEST_CONFIG)",
        "read_text(path, LARGEST_RECORD)",
    ),
    (
        "experiments/records/reader",
        "read_json(path, LARGEST_RECORD)",
        "read_json(path, LARGEST_LOG)",
    ),
    (
        "experiments/records/reader",
        "read_lines(path, largest)",
        "read_lines(path, LARGEST_OWN_LOG)",
    ),
    ("experiments/records/reader", 'or not _has_type(entry.get("step"), int)', ""),
    ("experiments/records/reader", 'key == "seconds" or _FIGURE', "_FIGURE"),
    (
        "experiments/records/reader",
        "math.isfinite(value) and abs(value) < _LARGEST_FLOAT",
        "math.isfinite(value)",
    ),
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
    args = ["-x", "-q", "-n0", "-pno:cacheprovider", test]
    child = os.fork()
    if child == 0:
        signal.alarm(_LONGEST_S)
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
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"  # nor do processes that tests start
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
