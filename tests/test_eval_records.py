"""eval/records.py: JSON Lines in and out."""

import gzip
import json
import os
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from damro.eval.errors import DataFormatError, EvalError
from damro.eval.records import RecordWriter, iterate_records, read_json, read_records, write_whole

LINES = '{"a": 1}\n\n{"a": "\u00e9\u2028b"}\r\n{"a": null}'


def test_lines_and_their_numbers(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(LINES.encode())
    records = read_records(path)
    assert [record.fields["a"] for record in records] == [1, "\u00e9\u2028b", None]  # U+2028 ends no line
    assert [record.where for record in records] == [f"{path}, line {number}" for number in (1, 3, 4)]


@pytest.mark.parametrize("name", ["x.json", "x.jsonl", "x.json.gz", "x.jsonl.gz", "x.JSONL.GZ"])
@pytest.mark.parametrize("as_list", [False, True])
def test_all_kinds_of_file_hold_the_same(tmp_path, name, as_list):
    values = [{"a": 1}, {"b": "\u00e9"}]
    text = json.dumps(values, indent=2) if as_list else "\n".join(map(json.dumps, values)) + "\n"
    content = text.encode("utf-8-sig")
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if name.lower().endswith("gz") else content)
    assert [record.fields for record in read_records(path)] == values


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1}\n{"a": \n{"a": 2}\n', "x.jsonl, line 2: not JSON .Expecting value at column"),
        (b'{"a": 1}\n[1]\n', r"x.jsonl, line 2: must be a JSON object, got list \[1\]"),
        (b'{"a": 1}\nnull\n', "x.jsonl, line 2: must be a JSON object, got NoneType None"),
        (b'{"a": NaN}\n', "x.jsonl, line 1: not JSON .NaN is not a JSON number"),
        (b'[{"a": 1},\n{"a" 2}]', r"x.jsonl, line 2: not JSON .* column 6\): '{\"a\" 2}\]'"),
        (b'[{"a": 1}, 2]', "x.jsonl, record 2: must be a JSON object, got int 2"),
        (b"[]", "x.jsonl: must hold at least one record, is empty"),
        (b" \n\n", "x.jsonl: must hold at least one record, is empty"),
        (b'{"a": "\xff"}', "x.jsonl: not UTF-8 text .byte 7"),
        (b"{" * 100_000, "x.jsonl, line 1: not JSON"),
        (b'{"a": ' + b"[" * 100_000, "x.jsonl, line 1: not JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "x.jsonl, line 1: not JSON .Exceeds the limit"),
    ],
)
def test_malformed_files_name_file_line_and_fault(tmp_path, content, message):
    path = tmp_path / "x.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataFormatError, match=message):
        read_records(path)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(DataFormatError, match=r"none.jsonl: cannot be read \(No such file or directory\)"):
        read_records(tmp_path / "none.jsonl")
    with pytest.raises(DataFormatError, match="cannot be read"):
        read_records(tmp_path)
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(gzip.compress(LINES.encode())[:-12])
    with pytest.raises(DataFormatError, match="cut.jsonl.gz: not a whole gzip file"):
        read_records(cut)
    plain = tmp_path / "plain.jsonl.gz"
    plain.write_bytes(LINES.encode())
    with pytest.raises(DataFormatError, match="plain.jsonl.gz: cannot be read .*gzip"):
        read_records(plain)


def test_read_json(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('{"9": ["bowl"]}')
    assert read_json(path) == {"9": ["bowl"]}
    path.write_text('{"9": ["bowl"],\n "25": [}')
    with pytest.raises(DataFormatError, match="x.json, line 2: not JSON"):
        read_json(path)


@settings(derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(content=st.binary(max_size=60) | st.text(alphabet='[]{}":,a1\n ', max_size=60).map(str.encode))
def test_no_content_ends_in_another_error(tmp_path, content):
    for name in ("x.jsonl", "x.jsonl.gz"):
        (tmp_path / name).write_bytes(content)
        try:
            assert read_records(tmp_path / name)
        except DataFormatError as error:
            assert name in str(error)


def test_writer_writes_a_line_at_once(tmp_path):
    path = tmp_path / "x.jsonl"
    with RecordWriter(path) as writer:
        writer.write({"text": "\u00e9 \ud800 \n"})
        assert path.read_bytes() == b'{"text": "\\u00e9 \\ud800 \\n"}\n'  # before close
    assert read_records(path)[0].fields == {"text": "\u00e9 \ud800 \n"}


@pytest.mark.parametrize("cut", range(1, 27))
def test_writer_goes_on_after_a_torn_line(tmp_path, cut):
    whole = [b'{"n": 0}\n', b'{"n": 1, "text": "{\\"n\\"}"}\n']
    path = tmp_path / "x.jsonl"
    path.write_bytes(whole[0] + whole[1][:-cut])
    with RecordWriter(path) as writer:
        writer.write({"n": 2})
    # Only the newline missing: the record is whole and stays. Anything else is dropped.
    assert [record.fields["n"] for record in read_records(path)] == ([0, 1, 2] if cut == 1 else [0, 2])


def test_writer_survives_a_kill(tmp_path):
    path = tmp_path / "x.jsonl"
    code = (
        "import os, sys; from damro.eval.records import RecordWriter\n"
        "w = RecordWriter(sys.argv[1])\n"
        "for n in range(5): w.write({'n': n})\n"
        "os.kill(os.getpid(), 9)"
    )
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    done = subprocess.run([sys.executable, "-c", code, str(path)], cwd=root, check=False)
    assert done.returncode == -9
    assert [record.fields["n"] for record in read_records(path)] == [0, 1, 2, 3, 4]


def test_writer_refuses_what_json_cannot_hold_and_writes_nothing(tmp_path):
    path = tmp_path / "x.jsonl"
    with RecordWriter(path) as writer:
        for value in (float("nan"), {1, 2}, b"x"):
            with pytest.raises(DataFormatError, match="record must be plain finite JSON"):
                writer.write({"value": value})
    assert path.read_bytes() == b""
    with pytest.raises(EvalError, match="path must be a plain .jsonl file, got .*x.jsonl.gz"):
        RecordWriter(tmp_path / "x.jsonl.gz")


@pytest.mark.parametrize("indent", [0, 1, 4, "\t"])
@pytest.mark.parametrize("between", ["\n", "\n\n", " "])
def test_objects_over_several_lines_each(tmp_path, indent, between):
    values = [{"a": [1, {"b": "}\n{"}]}, {"a": {}}, {"c": None, "d": "x"}]
    path = tmp_path / "x.json"
    texts = [json.dumps(value, indent=indent) for value in values]
    path.write_text("\n " + between.join(texts) + "\n")
    records = read_records(path)
    assert [record.fields for record in records] == values
    starts = [1 + path.read_text().index(text, 0) for text in texts]
    lines = [1 + path.read_text().count("\n", 0, start) for start in starts]
    assert [record.where for record in records] == [f"{path}, line {line}" for line in lines]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{\n "a": 1\n}\n{\n "a": 2,\n', r"line 6.*not JSON .*; write one object a line, or one list"),
        ('{\n "a": 1\n}\n{\n "a" 2\n}', r"line 5: not JSON \(Expecting ':' delimiter at column 6\): ' \"a\" 2'; write"),
        ('{\n "a": NaN\n}', "line 1: not JSON .NaN is not a JSON number"),
        ('{\n "a": 1\n}\n[1]', "line 4: must be a JSON object, got list"),
        ('{"a": 1}\n{\n"a": 2}', "line 2: not JSON"),
    ],
)
def test_faults_in_objects_over_several_lines(tmp_path, text, message):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(DataFormatError, match=message):
        read_records(path)


@pytest.mark.parametrize("nuls", [1, 4096, 200_000])
@pytest.mark.parametrize("before", [b"", b'{"n": 1', b'{"n": 1}'])
def test_nul_bytes_at_the_end_are_repaired_like_a_torn_line(tmp_path, nuls, before):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"n": 0}\n' + before + b"\0" * nuls)
    assert [record.fields["n"] for record in iterate_records(path)] == [0]
    with RecordWriter(path) as writer:
        writer.write({"n": 2})
        writer.sync()
    assert path.read_bytes() == b'{"n": 0}\n{"n": 2}\n'


@pytest.mark.parametrize("length", [10, (1 << 16) - 1, 1 << 16, (1 << 16) + 1, 300_000])
@pytest.mark.parametrize("first", [b"", b'{"n": 0}\n'])
def test_the_end_is_found_however_long_the_last_line_is(tmp_path, length, first):
    path = tmp_path / "x.jsonl"
    path.write_bytes(first + b'{"text": "' + b"a" * length)
    RecordWriter(path).close()
    assert path.read_bytes() == first
    whole = b'{"text": "' + b"a" * length + b'"}'
    path.write_bytes(first + whole)
    RecordWriter(path).close()
    assert path.read_bytes() == first + whole + b"\n"


def test_records_are_read_one_by_one_and_nothing_is_changed(tmp_path):
    path = tmp_path / "x.jsonl"
    content = b'{"n": 0}\n\n\0\0\0\n{"n": 1, "text": "\\u0000"}\r\n{"n": 2'
    path.write_bytes(content)
    assert [(record.where, record.fields["n"]) for record in iterate_records(path)] == [
        (f"{path}, line 1", 0),
        (f"{path}, line 4", 1),
    ]
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"n": \n', "line 2: not JSON"),
        (b"[1]\n", "line 2: must be a JSON object, got list"),
        (b'{"n": NaN}\n', "line 2: not JSON .NaN is not a JSON number"),
        (b'{"n": "\xff"}\n', "line 2: not UTF-8 text .byte 7"),
    ],
)
def test_a_line_that_is_whole_and_wrong_is_named(tmp_path, line, message):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"n": 0}\n' + line + b'{"n": 2}\n')
    with pytest.raises(DataFormatError, match=message):
        list(iterate_records(path))
    with pytest.raises(DataFormatError, match="none.jsonl: cannot be read"):
        list(iterate_records(tmp_path / "none.jsonl"))


def test_a_file_that_could_not_be_written_leaves_the_old_one_and_no_part(tmp_path):
    path = tmp_path / "x.json"
    write_whole(path, "old")

    def pieces():
        yield "new"
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_whole(path, pieces())
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    write_whole(path, iter(["a", "b"]))
    assert path.read_text() == "ab"


def test_a_packed_file_may_not_hold_everything(tmp_path, monkeypatch):
    bomb = tmp_path / "bomb.json.gz"
    with gzip.open(bomb, "wb", compresslevel=1) as file:
        for _ in range(100):
            file.write(bytes(1 << 20))
    assert bomb.stat().st_size < 1 << 19
    limit = max(64 << 20, 200 * bomb.stat().st_size)
    with pytest.raises(DataFormatError, match=rf"bomb.json.gz: must unpack to at most {limit} bytes \(64 MiB or 200"):
        read_json(bomb)
    monkeypatch.setattr("damro.eval.records._UNPACKED", 1000)
    packed = tmp_path / "packed.json.gz"
    for count, taken in ((1000, True), (100_000, False)):
        packed.write_bytes(gzip.compress(b'"' + b"a" * (count - 2) + b'"'))
        assert len(packed.read_bytes()) * 200 < 100_000
        if taken:
            assert len(read_json(packed)) == count - 2
        else:
            with pytest.raises(DataFormatError, match="or 200 times the file"):
                read_json(packed)
