"""participants.tsv as people write it: what is clear is taken, the rest is said or refused before any slice is cut."""

from __future__ import annotations

import pytest

from monai_vqgen.data import discover_volumes
from monai_vqgen.data.slices.participants import read_participants, rows_of_subjects
from monai_vqgen.errors import DatalistError


def read(folder, text, encoding="utf-8"):
    (folder / "participants.tsv").write_bytes(text.encode(encoding) if isinstance(text, str) else text)
    return read_participants(folder / "participants.tsv")


def column(folder, name, *values):
    rows = "".join(f"sub-{i}\t{value}\n" for i, value in enumerate(values))
    table = read(folder, f"participant_id\t{name}\n{rows}")
    return [table[f"sub-{i}"].get(name) for i in range(len(values))]


def test_a_column_of_numbers_stays_one_and_what_is_no_number_is_said(tmp_path, caplog):
    values = ["33", "41.5", "21,5", "89+", ">80", "-", "n/a", "inf", "1e999", "1,234", "old", "50", "51", "52", "53"]
    expected = [33, 41.5, 21.5, 89, 80, None, None, None, None, None, None, 50, 51, 52, 53]
    assert column(tmp_path, "age", *values) == expected
    for told in ("age of sub-3 is '89+' and taken as 89", "'inf'", "'1e999'", "'1,234'", "'old', no number"):
        assert told in caplog.text
    assert "21,5" not in caplog.text


def test_a_column_of_words_keeps_its_few_numbers(tmp_path):
    assert column(tmp_path, "group", "a", "b", "1") == ["a", "b", 1.0]


def test_spellings_of_one_word_are_one_the_most_frequent(tmp_path, caplog):
    assert column(tmp_path, "sex", "m", "M", "Male", "M", "female", "F", "F") == ["M"] * 4 + ["F"] * 3
    assert "sex 'M' and 'Male' and 'm' are taken as one" in caplog.text
    assert column(tmp_path, "group", "Depr", "depr", "depr", "m", "male") == ["depr"] * 3 + ["m", "male"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1"])
@pytest.mark.parametrize("separator", ["\t", ";", ","])
def test_every_encoding_and_separator(tmp_path, caplog, encoding, separator):
    rows = [["participant_id", "age", "city"], ["sub-1", "33", "Köln"]]
    text = "\r\n".join(separator.join(row) for row in rows)
    assert read(tmp_path, text, encoding) == {"sub-1": {"age": 33.0, "city": "Köln"}}
    assert ("is not UTF-8 and read as Latin-1" in caplog.text) == (encoding == "latin-1")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("participant_id\tnote\nsub-1\t" + "x" * 200_000, "field larger"),
        ('participant_id,note\nsub-1,"open\nsub-2,b\n', "cannot be read as a table"),
        ("participant_id\tage\tage\nsub-1\t2\t3\n", "two columns 'age'"),
        ("participant_id,age\nsub-1,21,5\n", r"a row \('sub-1'\) of more than 2 fields"),
        (b"\xff\xfeabc", "cannot be read as a table"),
        (b"p\0a\0", "zero bytes"),
    ],
)
def test_what_is_no_table_is_one_error_when_scans_are_looked_for(tmp_path, text, fault):
    (tmp_path / "sub-1.nii").touch()
    with pytest.raises(DatalistError, match=rf"participants\.tsv.*{fault}"):
        read(tmp_path, text)
    with pytest.raises(DatalistError, match=r"participants\.tsv"):
        discover_volumes(tmp_path)


def test_a_table_of_another_size_is_not_read(tmp_path):
    with (tmp_path / "participants.tsv").open("wb") as file:
        file.truncate(2**27 + 1)
    with pytest.raises(DatalistError, match="128 MiB"):
        read_participants(tmp_path / "participants.tsv")


def test_ids_without_sub_and_zeros_are_found_where_only_one_can_be_meant(caplog):
    table = {name: {"age": float(age)} for age, name in enumerate(["1", "02", "sub-3", "04", "4", "Sub-05"])}
    found = rows_of_subjects(table, ["sub-01", "sub-02", "sub-03", "sub-004", "sub-05", "sub-06", "x"])
    assert {name: row["age"] for name, row in found.items()} == {"sub-01": 0, "sub-02": 1, "sub-03": 2, "sub-05": 5}
    assert "no row of 3 of 7 subjects: sub-004, sub-06, x" in caplog.text
    assert rows_of_subjects({"1": {}}, ["sub-1", "sub-01"]) == {}, "whose row it is cannot be told"


def test_of_rows_by_session_what_agrees_is_used_and_the_rest_said(tmp_path, caplog):
    rows = "sub-1\t1\t33\tF\nsub-2\t1\t50\tM\nsub-1\t2\t35\tF\nsub-1\t3\t33\tn/a\n"
    table = read(tmp_path, f"participant_id\tvisit\tage\tsex\n{rows}")
    assert table == {"sub-1": {"sex": "F"}, "sub-2": {"visit": 1, "age": 50, "sex": "M"}}
    assert "what differs is not used: sub-1 (age, visit)" in caplog.text


def test_quotation_marks_between_tabs_are_text_but_those_around_a_cell(tmp_path):
    rows = ['sub-1\t33\t"so" he said', 'sub-2\t34\t"open', '"sub-3"\t"35"\t"whole"']
    table = read(tmp_path, "\n".join(['"participant_id"\t"age"\tnote', *rows]))
    assert [row["age"] for row in table.values()] == [33, 34, 35]
    assert [row["note"] for row in table.values()] == ['"so" he said', '"open', "whole"]
    assert "sub-3" in table


def test_a_tab_separates_whatever_else_the_header_has(tmp_path):
    text = "participant_id\tage (years, months; rounded, or, not)\nsub-1\t33\n"
    assert list(read(tmp_path, text)["sub-1"].values()) == [33]
    assert read(tmp_path, "participant_id;a,b;age\nsub-1;x;21,5\n") == {"sub-1": {"a,b": "x", "age": 21.5}}


def test_bounds_count_as_numbers(tmp_path):
    assert column(tmp_path, "age", "33", ">89") == [33, 89]
    assert column(tmp_path, "score", "1+", "2+") == ["1+", "2+"]


def test_columns_that_slices_have_of_their_own_are_said(tmp_path, caplog):
    assert read(tmp_path, "participant_id\timage\tage\nsub-1\tevil\t3\n") == {"sub-1": {"age": 3.0}}
    assert "the columns image are not used" in caplog.text
