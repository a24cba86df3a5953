"""What a file of a run may hold: whatever it is, the answer is of known types, or one line."""

import json
from pathlib import Path
from typing import Any

import pytest

from experiments.records.reader import (
    LARGEST_CONFIG,
    LARGEST_RECORD,
    is_number,
    parse_json,
    parse_yaml,
    read_config,
    read_json,
    read_log,
    read_record,
)


def nested_aliases(inner: str, outer: str) -> str:
    lines = [f"a0: &a0 {inner}"]
    for level in range(1, 30):
        items = ", ".join([f"*a{level - 1}"] * 9)
        lines.append(f"a{level}: &a{level} {outer.format(items)}")
    return "\n".join(lines)


ENDLESS = {
    "nested": "[" * 100_000 + "]" * 100_000,
    "nested mappings": "\n".join(" " * level + "a:" for level in range(200)),
    "aliases": nested_aliases("[x]", "[{}]"),
    "merged": nested_aliases("{x: 1}", "{{<<: [{}]}}"),
    "a chain": "\n".join(["a0: &a0 [x]", *(f"a{i}: &a{i} [*a{i - 1}]" for i in range(1, 3000))]),
    "itself": "a: &a [*a]",
    "itself, deeper": "a: &a {b: {c: [*a]}}",
    "many": "[" + "x, " * 20_000 + "]",
    "digits": "x: " + "9" * 5_000,
    "hexadecimal": "x: 0x" + "F" * 100_000,
    "base 60": "x: 1" + ":1" * 100_000,
}


@pytest.mark.parametrize("content", ENDLESS.values(), ids=ENDLESS)
def test_yaml_that_grows_is_refused(content: str) -> None:
    with pytest.raises(ValueError, match=r"nested|contains itself|values|digits"):
        parse_yaml(content)


def test_what_contains_itself_is_not_written_out() -> None:
    with pytest.raises(ValueError, match="contains itself"):
        parse_yaml("a: &a [*a]")


def test_a_long_word_that_begins_with_a_digit_is_no_number() -> None:
    text = "3 epochs, then " + "x" * 2_000
    assert parse_yaml(f"note: {text}") == {"note": text}


@pytest.mark.parametrize(
    "content",
    [
        "x: !!python/object/apply:os.getcwd []",
        "x: !!timestamp nope",
        "x: !!int ''",
        "x: !!bool maybe",
        "x: !!float '.'",
        "x: 2001-99-99",
        "? [a, b]\n: {c}\n? {d: e}\n: f",
        "a: *nothing",
        "a: 1\n--- \nb: 2",
        "a: \x00",
        "[",
    ],
)
def test_yaml_of_the_wrong_form_is_one_line(content: str) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]+$"):
        parse_yaml(content)


def test_aliases_as_they_are_dumped_are_read() -> None:
    assert parse_yaml("a: &id001 [0.9, 0.999]\nb: *id001\nc: {<<: {d: 1}}") == {
        "a": [0.9, 0.999],
        "b": [0.9, 0.999],
        "c": {"d": 1},
    }


@pytest.mark.parametrize("content", ["- a", "abc", "", "3"])
def test_a_configuration_has_keys(content: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(ValueError, match="no configuration"):
        read_config(tmp_path / "config.yaml")


def test_a_configuration_is_of_plain_values(tmp_path: Path) -> None:
    content = "1: 2001-01-01\n~: !!set {a}\n2.5: {true: !!binary aGk=}\nx: [1, .inf]"
    (tmp_path / "config.yaml").write_text(content)
    found = read_config(tmp_path / "config.yaml")
    assert found == {
        "1": "2001-01-01",
        "None": "{'a'}",
        "2.5": {"True": "b'hi'"},
        "x": [1, float("inf")],
    }


@pytest.mark.parametrize(
    "content",
    [
        "[" * 200_000,
        "[" * 900 + "]" * 900,
        '{"a":' * 900 + "1" + "}" * 900,
        "9" * 5_000,
        "",
        "{",
    ],
)
def test_json_of_the_wrong_form_is_a_value_error(content: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_json(content)


GOOD: dict[str, Any] = {"summary": {"test/acc": 0.5}}
WRONG: list[dict[str, Any]] = [
    {"images": "x"},
    {"images": {"train": "x"}},
    {"images": {"train": 10**30}},
    {"images": {"train": None}},
    {"seed": "0"},
    {"seed": True},
    {"seed": 1.5},
    {"resumed": 5},
    {"resumed": [5]},
    {"git": []},
    {"git": {"dirty": "no"}},
    {"git": {"commit": 5}},
    {"versions": {"torch": {"a": 1}}},
    {"hardware": "x"},
    {"name": 5},
    {"status": ["finished"]},
    {"command": {}},
    {"seconds": "x"},
    {"summary": []},
    {"summary": {"test/acc": "0.9"}},
    {"summary": {"test/acc": True}},
    {"summary": {"train/steps": [1]}},
    {"summary": {"best/step": {}}},
    {"summary": {"best/val/acc": 10**400}},
    {"summary": {"train/images_per_s": "fast"}},
    {"summary": None},
    {"evaluations": {"test": None}},
    {"weights": {"best.ckpt": 5}},
    {"weights": {"best.ckpt": None}},
    {"best_since": "x"},
]


@pytest.mark.parametrize("fields", WRONG, ids=json.dumps)
def test_a_record_of_other_types_is_not_of_this_project(
    fields: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "record.json"
    path.write_text(json.dumps({**GOOD, **fields}))
    with pytest.raises(ValueError, match=r"not of this project: [^\n]{,120}$"):
        read_record(path)


@pytest.mark.parametrize("content", ["[]", "5", '"x"', "null"])
def test_a_record_has_fields(content: str, tmp_path: Path) -> None:
    (tmp_path / "record.json").write_text(content)
    with pytest.raises(ValueError, match="not of this project"):
        read_record(tmp_path / "record.json")


def test_a_record_may_have_other_fields_and_gaps(tmp_path: Path) -> None:
    fields = {
        "summary": {"test/acc": None, "test/per_class": {"cat": 0.5}, "val/loss": float("nan")},
        "seed": None,
        "git": {"commit": None, "dirty": None},
        "new": [{"of": "tomorrow"}],
    }
    (tmp_path / "record.json").write_text(json.dumps(fields))
    assert read_record(tmp_path / "record.json").keys() == fields.keys()


def test_fields_that_are_null_and_never_written_so_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "record.json").write_text(json.dumps({**GOOD, "evaluations": None, "seed": None}))
    assert read_record(tmp_path / "record.json") == {**GOOD, "seed": None}


def test_each_kind_of_file_has_its_own_largest_size(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("{}" + " " * LARGEST_CONFIG)
    assert read_json(path, LARGEST_RECORD) == {}
    with pytest.raises(OSError, match="are read"):
        read_config(path)
    path.write_text(json.dumps(GOOD) + " " * LARGEST_RECORD)
    with pytest.raises(OSError, match="are read"):
        read_record(path)
    with pytest.raises(OSError, match="are read"):
        list(read_log(path, 100))


def test_lines_that_are_no_entries_are_told_from_those_that_are(tmp_path: Path) -> None:
    lines = [
        '{"step": 1, "val/acc": 0.5}',
        "[" * 100_000,
        '{"step": "x"}',
        '{"step": 1, "val/acc": "x"}',
        '{"step": 1, "seconds": []}',
        "5",
        "",
        "\ufffd",
        '{"step": null, "lr": [1]}',
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    known = [entry is not None for _, entry in read_log(tmp_path / "metrics.jsonl")]
    assert known == [True, *[False] * 7, True]


@pytest.mark.parametrize("value", [True, "1", None, float("nan"), float("inf"), 1e308, 10**400])
def test_what_is_no_figure(value: object) -> None:
    assert not is_number(value)
    assert is_number(0.5)
    assert is_number(-3)
