"""Files of labels that other tools write, or nobody: names, or one line that says why not; nothing else."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from qdeploy.core.errors import InputError
from qdeploy.core.preprocessing import Preprocessing
from qdeploy.data.dataset import Dataset, Split
from qdeploy.export.sources.labels import FoundLabels, find_labels, fitting, labels_from_file, matched

NUMBERS_READ = "; numbers at the start of lines were read as class numbers"
NINES = "9" * 5000
NOT_NUMBERS = {
    "ids of text": '[{"id": "n02", "name": "cat"}, {"id": "n01", "name": "ant"}, {"id": "n03", "name": "bee"}]',
    "one id of text": '[{"id": 3, "name": "cat"}, {"id": "n01", "name": "ant"}, {"id": 1, "name": "bee"}]',
    "an id of nothing": '{"categories": [{"id": null, "name": "cat"}, {"name": "ant"}, {"id": [], "name": "bee"}]}',
    "an endless id": '[{"id": 1e999, "name": "cat"}, {"id": 1, "name": "ant"}, {"id": NaN, "name": "bee"}]',
}
UNUSABLE = {
    "an endless key": "{1e999: 'x', 2: 'y', 3: 'z'}",
    "a key twice": "{1.0: 'x', '1': 'y', 2: 'z'}",
    "thousands of digits in YAML": f"names:\n  {NINES}: ant\n  1: bee\n",
    "thousands of digits as name": f'["ant", 0x{NINES}, "bee"]',
    "thousands of digits in a list": f'["ant", [0x{NINES}, 1, 2], "bee"]',
    "thousands of lists": f'["ant", {"[" * 900}{"]" * 900}]',
    "thousands of tables": '{"names": ' * 900 + "[]" + "}" * 900,
    "the same in the end": "ant\nant (0)\nant",
}


def first_labels(*given: Any) -> FoundLabels | None:
    return next(find_labels(*given), None)


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "labels.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize("name", NOT_NUMBERS)
def test_ids_that_are_no_numbers_leave_the_order(name: str, tmp_path: Path) -> None:
    assert labels_from_file(written(tmp_path, NOT_NUMBERS[name])).labels == ("cat", "ant", "bee")


@pytest.mark.parametrize("name", UNUSABLE)
@pytest.mark.parametrize("where", ["given", "beside", "metadata"])
def test_what_holds_no_labels_is_refused_only_if_it_was_asked_for(where: str, name: str, tmp_path: Path) -> None:
    model = onnx.ModelProto()
    if where == "metadata":
        helper.set_model_props(model, {"names": UNUSABLE[name]})
    else:
        path = written(tmp_path, UNUSABLE[name])
    if where != "given":
        notes: list[str] = []
        assert first_labels(model, None, tmp_path / "theirs.onnx", notes.append) is None
        assert len(notes) == 1
        assert notes[0].startswith("no labels were taken from a place that should hold them: ")
        assert ("metadata 'names'" if where == "metadata" else "labels.txt") in notes[0]
        return
    with pytest.raises(InputError, match=r"labels\.txt (must hold|holds)") as refused:
        first_labels(model, path, tmp_path / "theirs.onnx")
    assert "\n" not in str(refused.value)


def test_a_file_may_be_called_as_long_as_a_name_can_be(tmp_path: Path) -> None:
    assert first_labels(onnx.ModelProto(), None, tmp_path / f"{'x' * 250}.onnx") is None


@pytest.mark.parametrize(
    ("text", "labels", "numbers"),
    [
        ("1 euro\n2 euro", ("1 euro", "2 euro"), False),
        ("1 finger\n2 fingers\n3 fingers", ("1 finger", "2 fingers", "3 fingers"), False),
        ("0 caf\u00e9\n1 cafe\u0301", ("0 caf\u00e9", "1 cafe\u0301"), False),
        ("0: crane\n1: ant\n2: crane", ("crane (0)", "ant", "crane (2)"), True),
        ("1 bee\n0 ant", ("ant", "bee"), True),
        pytest.param(f"{NINES} ant\n1 bee", (f"{NINES} ant", "1 bee"), False, id="digits"),
        ("names: [0 ant, 1 bee]", ("0 ant", "1 bee"), False),
        ("names:\n- 'C #1'\n- C #  1\n- \"D #2\" # two\n- 'E' #\n- F#\n- 'it''s'", None, False),
        ("['C\\d', 'D']", ("C\\d", "D"), False),
    ],
)
def test_numbers_and_signs_that_belong_to_names_stay(
    text: str, labels: tuple[str, ...] | None, numbers: bool, tmp_path: Path
) -> None:
    found = labels_from_file(written(tmp_path, text))
    assert found.labels == (labels or ("C #1", "C", "D #2", "E", "F#", "it's"))
    assert (NUMBERS_READ in found.said()) == numbers


GAPS = {
    "{0: 'cat', 2: 'bee'}": "1",
    '{"0": "cat", "2": "bee", "5": "ant"}': "1, 3, 4",
    '{"cat": 0, "bee": 2}': "1",
    '{"1": "cat", "3": "bee"}': "2",
    '{"7": "cat", "8": "bee"}': "0, 1, 2, 3, 4, ...",
    '{"model": 1, "id2label": {"0": "cat", "1": "ant", "3": "bee"}}': "2",
    "nc: 2\nnames:\n  0: cat\n  2: bee\n": "1",
    "names: {0: cat, 2: bee}": "1",
    "0 cat\n1 ant\n3 bee": "2",
    "1: cat\n3: bee": "2",
    "2,bee\n0,cat": "1",
    "{0: 'cat', 1: 'ant', 1000000000000: 'bee'}": "2, 3, 4, 5, 6, ...",
}


@pytest.mark.parametrize("text", GAPS)
@pytest.mark.parametrize("where", ["given", "beside", "metadata"])
def test_a_number_that_is_left_out_is_named_and_nothing_moves_up(where: str, text: str, tmp_path: Path) -> None:
    says = f"numbers its labels and has none for {GAPS[text]}"
    model, notes = onnx.ModelProto(), list[str]()
    path = written(tmp_path, text) if where != "metadata" else None
    if where == "metadata":
        helper.set_model_props(model, {"names": text})
    if where == "given":
        with pytest.raises(InputError, match=re.escape(f"{path} {says}; name each class")):
            first_labels(model, path, tmp_path / "theirs.onnx")
        return
    assert first_labels(model, None, tmp_path / "theirs.onnx", notes.append) is None
    assert len(notes) == 1
    assert says in notes[0]


def test_a_negative_number_is_no_class(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="numbers its labels, one of them -1"):
        labels_from_file(written(tmp_path, "{-1: 'none', 0: 'cat', 1: 'ant'}"))


def test_ids_of_coco_may_leave_some_out_which_is_said(tmp_path: Path) -> None:
    found = labels_from_file(written(tmp_path, '[{"id": 13, "name": "bee"}, {"id": 11, "name": "cat"}]'))
    assert found.labels == ("cat", "bee")
    assert found.said().endswith("; no label has the id 12: they are taken in the order of ids, closed up")
    found = labels_from_file(written(tmp_path, '[{"id": 2, "name": "bee"}, {"id": 1, "name": "cat"}]'))
    assert "no label has" not in found.said()


TABLE = {"0": "melon", "1": "apple", "2": "berry"}
TURNED = {name: int(number) for number, name in TABLE.items()}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *((key, json.dumps(TABLE)) for key in ("idx_to_class", "index_to_name", "Names", "ID2LABEL")),
        *((key, json.dumps(TURNED)) for key in ("class_to_idx", "label2id", "label_map", "Class_To_Idx")),
        ("config", json.dumps({"hidden": 3, "id2label": TABLE, "label2id": TURNED})),
        ("hf", json.dumps({"model": {}, "label2id": TURNED})),
        ("classes", "melon; apple;berry"),
        ("names", "{0: ' melon ', 1: 'apple\\n', 2: '\\tberry'}"),
    ],
)
def test_metadata_of_any_tool_give_labels(key: str, value: str) -> None:
    model = onnx.ModelProto()
    helper.set_model_props(model, {"framework": "torch", "shape": '{"x": [1, 3]}', key: value})
    found = first_labels(model, None, Path("theirs.onnx"))
    assert found is not None
    assert found.labels == ("melon", "apple", "berry")
    assert found.where == f"metadata '{key}' of theirs.onnx"


def test_metadata_of_other_things_are_no_labels() -> None:
    model = onnx.ModelProto()
    props = {"stride": "32", "args": '{"batch": 1}', "shapes": "[1, 2]", "note": "{", "empty": "", "classes": ""}
    helper.set_model_props(model, props)
    assert first_labels(model, None, Path("theirs.onnx")) is None


@pytest.mark.parametrize("name", ["class_indices.json", "index_to_name.json", "class_to_idx.json", "labels.json"])
def test_tables_beside_a_file_give_labels(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(json.dumps(TURNED if name == "class_to_idx.json" else TABLE))
    found = first_labels(onnx.ModelProto(), None, tmp_path / "theirs.onnx")
    assert found is not None
    assert found.labels == ("melon", "apple", "berry")
    assert found.guessed


def test_numbers_of_a_zipmap_that_are_not_the_places_are_labels() -> None:
    for numbers, labels in (([0, 1, 2], None), ([0, 2, 3], ("0", "2", "3")), ([2, 0, 1], ("2", "0", "1"))):
        node = helper.make_node("ZipMap", ["p"], ["y"], domain="ai.onnx.ml", classlabels_int64s=numbers)
        model = helper.make_model(helper.make_graph([node], "g", [], []))
        found = first_labels(model, None, Path("theirs.onnx"))
        assert (found and found.labels) == labels


def test_a_heading_of_columns_is_no_label(tmp_path: Path) -> None:
    assert labels_from_file(written(tmp_path, "id,name\n1,bee\n0,ant\n")).labels == ("ant", "bee")
    assert labels_from_file(written(tmp_path, "id\tname\n0\tant\n1\tbee\n")).labels == ("ant", "bee")
    found = labels_from_file(written(tmp_path, "none\n1 finger\n2 hands"))
    assert found.labels == ("none", "1 finger", "2 hands")


def test_the_order_of_the_data_is_said_where_nothing_else_is_known() -> None:
    data = Dataset(name="coins", classes=("ant", "bee"), preprocessing=Preprocessing(), splits={}, problems=())
    _, notes = matched(data, None, 2, Path("theirs.onnx"))
    assert notes == [
        "nothing says how the file calls its classes: those of the data are taken in their order (ant, bee)"
    ]


def test_numbers_that_were_read_are_said_of_metadata_too() -> None:
    model = onnx.ModelProto()
    helper.set_model_props(model, {"labels": "0 ant\n1 bee"})
    found = first_labels(model, None, Path("theirs.onnx"))
    assert found is not None
    assert found.labels == ("ant", "bee")
    assert found.said() == f"the labels are those of metadata 'labels' of theirs.onnx{NUMBERS_READ}"
    data = Dataset(name="coins", classes=("0 ant", "1 bee"), preprocessing=Preprocessing(), splits={}, problems=())
    same, notes = matched(data, found, 2, Path("theirs.onnx"))
    assert same.classes == ("0 ant", "1 bee")
    assert notes == [found.said()]


SEEDS = (
    "cat\nant\nbee\n",
    "0 cat\n1 ant\n2 bee\n",
    "1: 'cat'\n2: ant\n3: bee",
    "cat, ant, 'bee'",
    json.dumps(["cat", "ant", "bee"]),
    json.dumps({"0": "cat", "1": "ant", "2": "bee"}),
    json.dumps({"cat": 0, "ant": 1, "bee": 2}),
    json.dumps({"0": ["n01", "cat"], "1": ["n02", "ant"]}),
    json.dumps({"categories": [{"id": 7, "name": "ant"}, {"id": 3, "name": "cat"}]}),
    json.dumps({"model": 1, "id2label": {"0": "cat", "1": "ant"}, "label2id": {}}),
    "{0: 'cat', 1: 'ant', -2: 'bee'}",
    "nc: 3\nnames:  # in order\n  0: cat\n  1: 'ant' # small\n  2: bee\n",
    'names:\n- cat\n- "ant"\n- bee #\nval: images\n',
    "names: ['cat', ant,\n 'bee']\n",
    "names: {0: cat, 1: ant}",
)
PIECES = [
    *(NINES, "1e999", "-1e999", "NaN", "null", "true", "0x" + NINES, "1.5", "-0", "1j", "\u0663", "\u00b2", "\\ud800"),
    *("[" * 3000, "{" * 3000, '{"names":' * 900, "[]", "{}", "()", "b'x'", "'", '"', "''", "\\", "\\x", "\\N{"),
    *(",", ":", " #", "#", "- ", "\n", "\r", "\t", "\x00", "\u2028", "\ufeff", "names:", "id", " " * 50, "..."),
]


def mutated(text: str, chance: random.Random) -> bytes:
    """Return a text some of whose bytes or words are others, lost, moved, or pieces that readers stumble over."""
    data = bytearray(text.encode())
    for _ in range(chance.randint(1, 4)):
        at, end = sorted(chance.randint(0, len(data)) for _ in range(2))
        how = chance.randrange(6)
        words = list(re.finditer(rb"\w+", data))
        if how == 0:
            data[at : at + 1] = bytes([chance.randrange(256)])
        elif how == 1:
            del data[at : min(end, at + 6)]
        elif how == 2:
            data[at:at] = data[at:end]
        elif how == 3 and words:
            word = chance.choice(words)
            data[slice(*word.span())] = chance.choice(PIECES).encode()
        else:
            data[at : at + chance.randint(0, 4)] = chance.choice(PIECES).encode()
    return bytes(data)


def test_mutated_files_give_labels_or_one_line(tmp_path: Path) -> None:
    chance = random.Random(5)
    labels, refusals = 0, list[str]()
    for _ in range(400):
        data = mutated(chance.choice(SEEDS), chance)
        try:
            found = labels_from_file(written(tmp_path, data))
        except InputError as error:
            refusals.append(str(error))
        else:
            assert len(set(found.labels)) == len(found.labels) >= 2
            assert all(found.labels)
            labels += 1
    assert labels > 40
    assert len(refusals) > 40
    assert not any("\n" in text for text in refusals)


@pytest.mark.parametrize(
    "text",
    [
        "- cat\n- ant\n- bee\n",
        "- 'cat'\n- \"ant\"  # the second\n- bee\n",
        '{"cat": "0", "bee": "2", "ant": "1"}',
        '{"cat": 0, "bee": 2.0, "ant": 1}',
    ],
)
def test_lists_of_yaml_and_tables_by_name_give_names(text: str, tmp_path: Path) -> None:
    assert labels_from_file(written(tmp_path, text)).labels == ("cat", "ant", "bee")


def test_a_dash_before_one_name_is_part_of_it(tmp_path: Path) -> None:
    assert labels_from_file(written(tmp_path, "cat\n- ant\nbee\n")).labels == ("cat", "- ant", "bee")


FOLDERS = sorted(map(str, range(11)))
TO_NUMBER = {name: i for i, name in enumerate(FOLDERS)}
TO_NAME = {str(i): int(name) for i, name in enumerate(FOLDERS)}


@pytest.mark.parametrize("where", ["metadata", "inside", "config", "beside"])
@pytest.mark.parametrize(
    ("key", "table"),
    [
        ("idx_to_class", TO_NAME),
        ("id2label", TO_NAME),
        ("index_to_name", TO_NAME),
        ("class_to_idx", TO_NUMBER),
        ("label2id", {name: str(i) for name, i in TO_NUMBER.items()}),
    ],
)
def test_what_a_table_of_numbers_is_called_says_which_is_the_place(
    where: str, key: str, table: dict[str, Any], tmp_path: Path
) -> None:
    model = onnx.ModelProto()
    if where in ("metadata", "inside"):
        helper.set_model_props(
            model, {key: json.dumps(table)} if where == "metadata" else {"x": json.dumps({key: table})}
        )
    elif where == "config":
        (tmp_path / "config.json").write_text(json.dumps({key: table}))
    else:
        name = key if key in ("idx_to_class", "class_to_idx") else "labels"
        (tmp_path / f"{name}.json").write_text(json.dumps({key: table} if name == "labels" else table))
    found = first_labels(model, None, tmp_path / "theirs.onnx")
    assert found is not None
    assert found.labels == tuple(FOLDERS)


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ('{"0": 7, "1": 1, "2": 4, "3": 9}', ("7", "1", "4", "9")),
        ('{"7": 0, "1": 1, "4": 2, "9": 3}', ("7", "1", "4", "9")),
        ("{7: 0, 1: 1, 4: 2}", ("7", "1", "4")),
        ('{"1": 20, "2": 10}', ("20", "10")),
        ('{"1": 0, "2": 1, "10": 2}', ("1", "2", "10")),
        ("{0: 0, 1: 2, 2: 1}", ("0", "2", "1")),
        ("{0: 1, 1: 2, 2: 0}", ("1", "2", "0")),
        ('{"0": "1", "1": "2", "2": "0"}', ("1", "2", "0")),
        ('{"names": {"0": 1, "1": 2, "2": 0}}', ("1", "2", "0")),
    ],
)
def test_numbers_without_a_gap_are_the_places(text: str, labels: tuple[str, ...], tmp_path: Path) -> None:
    assert labels_from_file(written(tmp_path, text)).labels == labels


def test_a_table_of_numbers_that_may_be_read_both_ways_is_refused(tmp_path: Path) -> None:
    says = r"labels\.txt is a table of numbers, .*, found 0: 1, 1: 2, 2: 0; call it class_to_idx or idx_to"
    with pytest.raises(InputError, match=says):
        labels_from_file(written(tmp_path, '{"0": 1, "1": 2, "2": 0}'))


COCO = json.dumps([{"id": i, "name": name} for i, name in ((1, "cat"), (3, "dog"), (4, "emu"), (9, "fox"))])


@pytest.mark.parametrize(
    ("text", "folders", "labels"),
    [
        ('{"1": "cat", "2": "dog", "3": "emu"}', ("1", "2"), ["cat", "dog"]),
        ('{"cat": 1, "dog": 2, "emu": 3}', ("3", "1"), ["emu", "cat"]),
        ("1: cat\n2: dog\n3: emu", ("01", "03"), ["cat", "emu"]),
        ("1: cat\n2: dog\n3: emu", ("0", "1"), None),
        ("names:\n  1: cat\n  2: dog\n  3: emu\n", ("1", "2"), ["cat", "dog"]),
        ("names: {1: cat, 2: dog, 3: emu}", ("1", "2"), ["cat", "dog"]),
        (COCO, ("1", "3"), ["cat", "dog"]),
        (COCO, ("1", "2"), None),
        (COCO, ("9",), ["fox"]),
        ("cat\ndog\nemu", ("0", "2"), ["cat", "emu"]),
        ("cat\ndog\nemu", ("1", "3"), None),
        ("10\n20\n2", ("0", "1", "2"), None),
    ],
)
def test_folders_that_are_numbers_are_those_of_the_table(
    text: str, folders: tuple[str, ...], labels: list[str] | None, tmp_path: Path
) -> None:
    found = labels_from_file(written(tmp_path, text))
    places = np.arange(len(folders))
    pixels = np.zeros((len(folders), 8, 8, 3), np.uint8)
    splits = {"test": Split(pixels=pixels, labels=places, hashes=())}
    data = Dataset(name="coins", classes=folders, preprocessing=Preprocessing(), splits=splits, problems=())
    if labels is None:
        with pytest.raises(InputError, match="coins has the class"):
            matched(data, found, len(found.labels), Path("theirs.onnx"))
        return
    same, _ = matched(data, found, len(found.labels), Path("theirs.onnx"))
    assert [same.classes[i] for i in same.splits["test"].labels] == labels


SIGNATURE = json.dumps({"names": ["image", "mask"]})
FOUR = ("ant", "bee", "cat", "dog")


def test_an_entry_that_only_looks_like_labels_gives_way(tmp_path: Path) -> None:
    model, notes = onnx.ModelProto(), list[str]()
    helper.set_model_props(model, {"signature": SIGNATURE})
    file = tmp_path / "theirs.onnx"
    assert fitting(find_labels(model, None, file), 4, notes.append) is None
    assert notes == ["metadata 'signature' of theirs.onnx holds 2 labels and not 4: it is left alone"]
    (tmp_path / "labels.txt").write_text("ant\nbee")
    found = fitting(find_labels(model, None, file), 2)
    assert found is not None
    assert found.labels == ("ant", "bee")
    helper.set_model_props(model, {"signature": SIGNATURE, "hf": json.dumps({"names": FOUR[:3], "id2label": TABLE})})
    assert [c.where.split("'")[1] for c in find_labels(model, None, file) if "metadata" in c.where] == [
        "hf",
        "signature",
    ]
    first = first_labels(model, None, file)
    assert first is not None
    assert first.labels == tuple(TABLE.values())


def test_labels_of_another_number_hide_no_others(tmp_path: Path) -> None:
    model, notes = onnx.ModelProto(), list[str]()
    file = tmp_path / "theirs.onnx"
    (tmp_path / "classes.json").write_text('["image", "mask"]')
    (tmp_path / "config.json").write_text(json.dumps({"id2label": dict(enumerate(FOUR))}))
    found = fitting(find_labels(model, None, file, notes.append), 4, notes.append)
    assert found is not None
    assert found.labels == FOUR
    assert notes == [f"{tmp_path / 'classes.json'} holds 2 labels and not 4: it is left alone"]
    helper.set_model_props(model, {"names": str(list(FOUR[:3]))})
    assert fitting(find_labels(model, None, file), 4, notes.append) == found
    assert notes[1] == "metadata 'names' of theirs.onnx holds 3 labels and not 4: it is left alone"
    said = fitting(find_labels(model, None, file), 7)
    assert said is not None
    assert said.where == "metadata 'names' of theirs.onnx"
