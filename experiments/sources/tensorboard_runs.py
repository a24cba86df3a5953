"""Reads runs from TensorBoard's event files: scalars, and the settings of the plugin HPARAMS.

The messages in an event file are those of the package tensorboard. The file itself is read here:
TensorBoard's own reader imports TensorFlow if it can, computes checksums in Python, which takes
longer than all else, and holds each picture in memory. Checksums are not compared here.

A folder with event files is a run, as in TensorBoard. A subfolder that holds nothing but settings
and final values, as ``SummaryWriter.add_hparams`` writes it, is part of the run above it.
"""

import importlib
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from experiments.records.files import open_regular, reason_of
from experiments.records.reader import LARGEST_OWN_LOG
from experiments.records.runs import Run
from experiments.sources.csv_runs import settings_in
from experiments.sources.foreign import MOST_POINTS, Point, broken, date_of, entries_of, run_of

SOURCE = "tensorboard"
MARK = ".tfevents."  # in the name of every event file
_LARGEST_EVENT = 2**18  # bytes; larger ones hold pictures, sounds and graphs, which are skipped
_HEADER = struct.Struct("<Q4x")  # the length of an event, and its checksum
_CHECKSUM_BYTES = 4  # after the event
_MOST_EVENTS = MOST_POINTS
_HPARAMS = "hparams"
_FORMATS = {1: "f", 2: "d", 3: "i", 9: "q"}  # of tensors: DT_FLOAT, DT_DOUBLE, DT_INT32, DT_INT64
_RESTART = 1  # SessionLog.START
_MOST_RESTARTS = 100


def read_tensorboard(folder: Path, name: str = "") -> Run:
    """Reads the run of a folder with event files; one that can't be read is unreadable.

    Args:
        folder: with files of one run, in its subfolders perhaps settings of it.
        name: of the run; default: of the folder.
    """
    try:
        event = importlib.import_module("tensorboard.compat.proto.event_pb2").Event
        hparams = importlib.import_module("tensorboard.plugins.hparams.plugin_data_pb2")
    except ImportError:
        return broken(folder, "event files need a reader: pip install tensorboard", SOURCE, name)
    found = _Events(event, hparams.HParamsPluginData)
    try:
        files = event_files(folder)
        if not files:
            raise ValueError("they are links")
        for path in [*files, *_files_of_settings(folder)]:
            found.read(path, is_inner=path not in files)
        settings, note = settings_in(folder)
        started = date_of(found.began) if found.began else None
        return run_of(
            name or folder.absolute().name,
            folder,
            SOURCE,
            settings or found.settings,  # Lightning writes both
            entries_of(found.points()),
            note=found.note or note,
            summary=found.final,
            started=started,
        )
    except (OSError, ValueError) as error:
        return broken(folder, f"its event files can't be read: {reason_of(error)}", SOURCE, name)


def event_files(folder: Path) -> list[Path]:
    """The event files of a folder, the oldest first."""
    found = (path for path in folder.iterdir() if MARK in path.name)
    return sorted(path for path in found if not path.is_symlink())


def is_part_of_run(folder: Path) -> bool:
    """Whether a folder holds only the settings of the run above it, by its name.

    ``SummaryWriter.add_hparams`` takes the time as the name.
    """
    try:
        return float(folder.name) > 0 and bool(event_files(folder.parent))
    except ValueError:
        return False


def _files_of_settings(folder: Path) -> Iterator[Path]:
    for inner in sorted(folder.iterdir()):
        if inner.is_dir() and not inner.is_symlink() and is_part_of_run(inner):
            yield from event_files(inner)


class _Events:
    """The scalars and settings of the event files of one run.

    Args:
        event: the class of a message in an event file.
        hparams: the class of a message of the plugin HPARAMS.
    """

    def __init__(self, event: Any, hparams: Any) -> None:
        self._event = event
        self._hparams = hparams
        self._values: list[tuple[str, int, float, float]] = []
        self._restarts = 0
        self.began = 0.0  # seconds since 1970
        self.settings: dict[str, Any] = {}
        self.final: dict[str, float] = {}
        self.note = ""

    def read(self, path: Path, is_inner: bool) -> None:
        """Reads a file; its damaged end is left out, with a note.

        Args:
            path: the file.
            is_inner: whether its values are final ones, beside the settings.

        Raises:
            ValueError: if it is no event file, or has too many events.
        """
        count = 0
        with open_regular(path) as file:
            for count, content in enumerate(_messages(file, self._say(path)), 1):
                if max(count, len(self._values)) > _MOST_EVENTS:
                    raise ValueError(f"{path.name} has more than {_MOST_EVENTS:,} events")
                try:
                    self._note(self._event.FromString(content), is_inner)
                except Exception as error:  # protobuf's own kind, whose module differs
                    raise ValueError(f"event {count} of {path.name} is damaged") from error
        if not count:
            raise ValueError(f"{path.name} holds no events yet")

    def points(self) -> Iterator[Point]:
        """Yields the scalars, with the time since the first."""
        for tag, step, value, at in self._values:
            yield Point(tag, step, value, at - self.began)

    def _say(self, path: Path) -> Callable[[str], None]:
        def say(note: str) -> None:
            self.note = f"{path.name} {note}"

        return say

    def _note(self, event: Any, is_inner: bool) -> None:
        self.began = self.began or event.wall_time
        if event.HasField("session_log") and event.session_log.status == _RESTART and event.step:
            self._restarts += 1
            if self._restarts <= _MOST_RESTARTS:
                self._values = [value for value in self._values if value[1] < event.step]
        for value in event.summary.value:
            plugin = value.metadata.plugin_data
            if plugin.plugin_name == _HPARAMS:
                self._note_settings(plugin.content)
            elif (number := _scalar(value)) is not None:
                if is_inner:
                    self.final[value.tag] = number
                else:
                    self._values.append((value.tag, event.step, number, event.wall_time))

    def _note_settings(self, content: bytes) -> None:
        message = self._hparams.FromString(content)
        for key, value in message.session_start_info.hparams.items():
            self.settings[key] = _setting(value)


def _setting(value: Any) -> Any:
    """A setting; TensorBoard keeps every number as a float."""
    kind = value.WhichOneof("kind")
    found = getattr(value, kind) if kind in {"bool_value", "string_value", "number_value"} else None
    return int(found) if isinstance(found, float) and found.is_integer() else found


def _scalar(value: Any) -> float | None:
    """The number of a value, in either of the forms in which TensorBoard writes one."""
    kind = value.WhichOneof("value")
    if kind == "simple_value":
        return float(value.simple_value)
    tensor = value.tensor
    if kind != "tensor" or tensor.tensor_shape.dim or tensor.dtype not in _FORMATS:
        return None
    for numbers in (tensor.float_val, tensor.double_val, tensor.int_val, tensor.int64_val):
        if numbers:
            return float(numbers[0])
    form = struct.Struct(f"<{_FORMATS[tensor.dtype]}")
    content = tensor.tensor_content
    return float(form.unpack(content)[0]) if len(content) == form.size else None


def _messages(file: IO[bytes], say: Callable[[str], None]) -> Iterator[bytes]:
    """Yields the events of a file that are small enough to hold numbers."""
    size = os.fstat(file.fileno()).st_size
    if size > LARGEST_OWN_LOG:
        raise ValueError(f"it has {size:,} bytes; at most {LARGEST_OWN_LOG:,} are read")
    at, is_first = 0, True
    while header := file.read(_HEADER.size):
        (length,) = _HEADER.unpack(header) if len(header) == _HEADER.size else (size,)
        at += _HEADER.size + length + _CHECKSUM_BYTES
        if at > size:
            if is_first:
                raise ValueError("it is no event file")
            say("ends within an event")  # as of a process that was killed
            return
        if length <= _LARGEST_EVENT:
            yield file.read(length)
        file.seek(at)
        is_first = False
