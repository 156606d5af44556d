"""What participants.tsv states about subjects: read leniently where the meaning is clear, and said where it is not."""

from __future__ import annotations

import codecs
import csv
import io
import logging
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

from monai_vqgen.errors import DatalistError
from monai_vqgen.transforms.nifti import FREE_BYTES

__all__ = ["MISSING", "number_in", "read_participants", "read_table", "rows_of_subjects"]

logger = logging.getLogger(__name__)

RESERVED = frozenset({"image", "subject", "plane", "position_mm", "mirrored"})  # of a slice's record
MISSING = frozenset({"", "n/a", "na", "nan", "-", "--", "?", ".", "null"})  # BIDS writes n/a
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE | re.ASCII)
DECIMAL_COMMA = re.compile(r"[+-]?\d+,(?!\d{3}$)\d+", re.ASCII)  # 1,234 may be a thousand
BOUND = re.compile(r"[<>]?=?\s*(\d+(?:\.\d+)?)\s*\+?", re.ASCII)  # 89+, >89: BIDS' way to hide high ages
QUOTED = re.compile('"[^"]*"')  # a whole cell, as some programs write it
SEXES = {"m": "m", "male": "m", "man": "m", "f": "f", "female": "f", "woman": "f"}

Columns = dict[str, float | str]


def read_participants(path: Path) -> dict[str, Columns]:
    """Read a BIDS participants.tsv; no file, no entries.

    Missing values are left out, and, with a warning, what the rows of one subject (its sessions) state differently. A
    column most of whose values are numbers is one of numbers: a decimal comma is one, "89+" is 89, anything else is
    left out; the latter two are logged. Spellings of one word ("M", "m", "Male" in the column sex) become the most
    frequent one.

    Raises:
        DatalistError: the file is too large or no table.
    """
    if not path.is_file():
        return {}
    rows = read_table(path)
    if not rows:
        return {}
    names = [name.strip() for name in rows[0]]
    twice = sorted(name for name, count in Counter(names).items() if name and count > 1)
    wide = [row[0] for row in rows[1:] if any(row[len(names) :])]
    if twice or wide:
        what = f"two columns {twice[0]!r}" if twice else f"a row ({wide[0]!r}) of more than {len(names)} fields"
        raise DatalistError(f"{path} has {what}; mend the table")
    if "participant_id" not in names:
        logger.warning("%s has no column participant_id and is not used", path)
        return {}
    table: dict[str, Columns] = {}
    differing: dict[str, set[str]] = defaultdict(set)
    for row in rows[1:]:
        entries = {name: text.strip() for name, text in zip(names, row, strict=False)}
        subject = entries.pop("participant_id", "")
        known = {name: text for name, text in entries.items() if name and text.lower() not in MISSING}
        if subject:
            first = table.setdefault(subject, {})
            differing[subject] |= {name for name, text in known.items() if first.setdefault(name, text) != text}
    for subject, columns in differing.items():
        for name in columns:
            del table[subject][name]
    if told := [f"{subject} ({', '.join(sorted(columns))})" for subject, columns in differing.items() if columns]:
        logger.warning("%s: rows of one subject differ, and what differs is not used: %s", path, "; ".join(told[:5]))
    if reserved := sorted(RESERVED & set(names)):
        logger.warning("%s: the columns %s are not used: slices have their own", path, ", ".join(reserved))
    for name in dict.fromkeys(names):
        values = {subject: str(entries.pop(name)) for subject, entries in table.items() if name in entries}
        for subject, value in ({} if name in RESERVED else _uniform(path, name, values)).items():
            table[subject][name] = value
    return table


def read_table(path: Path) -> list[list[str]]:
    """The rows of cells of a table in UTF-8, UTF-16 or Latin-1, between tabs, semicolons or commas.

    Raises:
        DatalistError: the file is too large or no table.
    """
    if (size := path.stat().st_size) > FREE_BYTES:
        raise DatalistError(f"{path} has {size / 2**20:.0f} MiB, which is no table such as this; move it away")
    content = path.read_bytes()
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        try:
            text = content.decode("utf-16" if wide else "utf-8-sig")
        except UnicodeDecodeError:
            if wide:
                raise
            logger.warning("%s is not UTF-8 and read as Latin-1", path)
            text = content.decode("latin-1")
        if "\0" in text:
            raise ValueError("it holds zero bytes")
        first, lines = text.lstrip("\r\n").partition("\n")[0], io.StringIO(text, newline="")
        separator = "\t" if "\t" in first else max("\t;,", key=first.count)
        quote = None if separator == "\t" else '"'  # BIDS' tables do not quote
        rows = [row for row in csv.reader(lines, delimiter=separator, quotechar=quote, strict=True) if any(row)]
        return [[cell[1:-1] if QUOTED.fullmatch(cell) else cell for cell in row] for row in rows]
    except (ValueError, csv.Error) as error:  # a field of more than 128 KiB, a quotation without end
        raise DatalistError(f"{path} cannot be read as a table ({error}); save it as UTF-8, tab-separated") from error


def _uniform(path: Path, name: str, values: Mapping[str, str]) -> Columns:
    """One column by subject: numbers, or words in one spelling; where neither is most frequent, each as it is."""
    plain = {subject: number for subject, text in values.items() if (number := number_in(text)) is not None}
    bounds = {
        s: float(bound.group(1)) for s, text in values.items() if s not in plain and (bound := BOUND.fullmatch(text))
    }
    bounds = {s: number for s, number in bounds.items() if math.isfinite(number)}
    if not plain or 2 * (len(plain) + len(bounds)) <= len(values):
        return {**_words(name, values), **plain}
    for subject, text in values.items():
        if subject in bounds:
            logger.warning("%s: %s of %s is %r and taken as %g", path, name, subject, text, bounds[subject])
        elif subject not in plain:
            logger.warning("%s: %s of %s is %r, no number like the others, and left out", path, name, subject, text)
    return {**plain, **bounds}


def number_in(text: str) -> float | None:
    """The number that a cell holds, with a point or a decimal comma; None where it holds none."""
    plain = text.replace(",", ".") if DECIMAL_COMMA.fullmatch(text) else text
    return float(plain) if NUMBER.fullmatch(plain) and math.isfinite(float(plain)) else None


def _words(name: str, values: Mapping[str, str]) -> Columns:
    """Each word in the most frequent of its spellings (the shortest, then the first, of equally frequent ones)."""
    of_sex = name.lower() in ("sex", "gender")

    def key(text: str) -> str:
        folded = " ".join(text.casefold().split())
        return SEXES.get(folded, folded) if of_sex else folded

    spellings: dict[str, Counter[str]] = defaultdict(Counter)
    for text in values.values():
        spellings[key(text)][text] += 1
    for found in spellings.values():
        if len(found) > 1:
            logger.warning("participants.tsv: %s %s are taken as one", name, " and ".join(map(repr, sorted(found))))
    best = {word: min(found, key=lambda text: (-found[text], len(text), text)) for word, found in spellings.items()}
    return {subject: best[key(text)] for subject, text in values.items()}


def rows_of_subjects(table: Mapping[str, Columns], subjects: Iterable[str]) -> dict[str, Columns]:
    """The columns of each subject: the row of its name, else the only one that differs in "sub-" and zeros in front.

    Subjects without a row are logged.

    Examples:
        >>> rows_of_subjects({"1": {"age": 33.0}}, ["sub-01"])
        {'sub-01': {'age': 33.0}}
    """
    wanted = sorted(set(subjects))
    rows, owners = _by_number(table), _by_number(wanted)
    found = {}
    for subject in wanted:
        alike = rows[_bare(subject)]
        if subject in table:
            found[subject] = table[subject]
        elif len(alike) == 1 and len(owners[_bare(subject)]) == 1:
            found[subject] = table[alike[0]]
    if table and (lost := [subject for subject in wanted if subject not in found]):
        logger.warning(
            "participants.tsv has no row of %d of %d subjects: %s", len(lost), len(wanted), ", ".join(lost[:5])
        )
    return found


def _by_number(names: Iterable[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for name in names:
        found[_bare(name)].append(name)
    return found


def _bare(name: str) -> str:
    return re.sub(r"^(sub-)?0*(?=.)", "", name.casefold())
