"""Changed files through the product's own readers, in processes with a limit of memory and of time.

write valid files --> change one --> read in a forked process --> right, refused, or a finding (kept to look at)

A forked process reads some hundred files, each announced through a pipe before it is read, so that of a crash or a
hang the parent knows whose it is. Change number i of a seed is the same on every machine.
"""

from __future__ import annotations

import logging
import os
import resource
import select
import shutil
import signal
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from monai_vqgen.errors import InputError, VQGenError
from monai_vqgen.files import write_json
from tools.fuzz_targets import TARGETS, Target

__all__ = ["OUTCOMES", "changed", "fuzz", "fuzz_target"]

logger = logging.getLogger(__name__)

OUTCOMES = ("read", "refused", "crash", "hang", "over memory", "other error", "read otherwise")
"""All but the first two are findings; the last is a changed file below a checksum, read as if it were whole."""
BATCH = 500  # files a process
KEPT = 20  # findings of a kind and target that are kept to look at
NUMBERS = (
    0,
    1,
    2,
    3,
    7,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0x8000,
    0xFFFF,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFF,
    2**63,
    2**64 - 1,
)
FLOATS = (float("nan"), float("inf"), -float("inf"), 0.0, -1.0, 1e-30, 1e30, 3.4e38)
WORDS = (
    *(b"null", b"NaN", b"-1", b"1e999", b"true", b"[]", b"{}", b'""', b"../", b"/etc/passwd", b"\0", b"\xff", b"\n"),
    *(b"\t", b'"', b"[" * 2000, b'{"a":' * 2000, b"9" * 5000, b"A" * 200_000, b"0.5", b"sha256:", b"\xef\xbb\xbf"),
)


class Limits(NamedTuple):
    """What a file may take."""

    memory_bytes: int = 10**9
    seconds: float = 20.0


LIMITS = Limits()


def changed(content: bytes, random: np.random.Generator) -> bytes:
    """Content after one to six changes: bits, bytes, numbers, words, parts gone, doubled, moved, cut off.

    Examples:
        >>> changed(b"abcdefgh", np.random.default_rng(0)) != b"abcdefgh"
        True
    """
    whole = bytearray(content)
    for _ in range(int(random.integers(1, 7)) if random.random() < 0.6 else 1):
        size = len(whole)
        # headers come first, so early bytes come up more often
        at = int(size ** random.random()) if random.random() < 0.4 else int(random.integers(0, size + 1))
        at = min(at, max(0, size - 1))
        length = int(random.integers(1, 1 + min(size - at, 64))) if size > at else 0
        match int(random.integers(0, 10)):
            case 0 | 1 if size:
                whole[at] ^= 1 << int(random.integers(0, 8))
            case 2 if size:
                whole[at] = int(random.integers(0, 256))
            case 3:
                width = int(random.choice((1, 2, 4, 8)))
                number = NUMBERS[int(random.integers(0, len(NUMBERS)))] % 256**width
                whole[at : at + width] = number.to_bytes(width, "big" if random.random() < 0.5 else "little")
            case 4:
                value = np.array(FLOATS[int(random.integers(0, len(FLOATS)))], random.choice(("<f4", ">f4", "<f8")))
                whole[at : at + value.nbytes] = value.tobytes()
            case 5:
                whole[at:at] = WORDS[int(random.integers(0, len(WORDS)))]
            case 6:
                del whole[at : at + length]
            case 7:
                whole[at:at] = whole[at : at + length] * int(random.integers(1, 4))
            case 8:
                there = int(random.integers(0, size + 1))
                whole[there : there + length] = whole[at : at + length]
            case 9 if random.random() < 0.3:
                del whole[at:]
            case _:
                word = WORDS[int(random.integers(0, len(WORDS)))][:16]
                whole[at : at + len(word)] = word
    return bytes(whole)


def fuzz(output: str | Path, *, targets: Sequence[str] = (), count: int = 20_000, seed: int = 0) -> int:
    """Read changed files of every kind, and print how it went.

    Args:
        output: findings and `fuzz.json` go there.
        targets: of `TARGETS`; none stands for all.
        count: files of each.
        seed: of the changes.

    Returns:
        The number of findings.

    Raises:
        InputError: an unknown target.
    """
    if unknown := sorted({*targets} - {*TARGETS}):
        raise InputError(f"target {unknown[0]!r} is unknown; choose among {', '.join(TARGETS)}")
    folder, found = Path(output), dict[str, Counter[str]]()
    folder.mkdir(parents=True, exist_ok=True)
    for name in targets or TARGETS:
        start = time.perf_counter()
        found[name] = fuzz_target(TARGETS[name], folder / name, count=count, seed=seed)
        told = ", ".join(f"{found[name][outcome]} {outcome}" for outcome in OUTCOMES)
        print(f"{name}: {count} files in {time.perf_counter() - start:.0f} s: {told}", flush=True)
        write_json(folder / "fuzz.json", {"seed": seed, "count": count, "outcomes": found})
    return sum(number for outcomes in found.values() for outcome, number in outcomes.items() if outcome in OUTCOMES[2:])


def fuzz_target(target: Target, findings: Path, *, count: int, seed: int = 0, limits: Limits = LIMITS) -> Counter[str]:
    """Read `count` changed files of one kind; how often each of `OUTCOMES` came.

    The changed folders of findings are kept, `KEPT` of each outcome, below `findings`.
    """
    outcomes: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as scratch, tqdm(total=count, disable=None) as progress:
        valid, folder = Path(scratch, "valid"), Path(scratch, "changed")
        valid.mkdir()
        target.write(valid)
        number, case = 0, _Case(target, valid, folder, seed, _told(target.read(valid)))
        while number < count:
            last = min(count, number + BATCH)
            for outcome, why in _batch(case, range(number, last), limits):
                outcomes[outcome] += 1
                if outcome in OUTCOMES[2:] and outcomes[outcome] <= KEPT:
                    kept = findings / f"{outcome.replace(' ', '_')}-{number}"
                    shutil.rmtree(kept, ignore_errors=True)
                    case._replace(folder=kept).write(number)
                    (kept / "why.txt").write_text(why + "\n")
                    logger.warning("%s: %s", kept, why)
                number += 1
                progress.update()
    return outcomes


class _Case(NamedTuple):
    target: Target
    valid: Path
    folder: Path
    seed: int
    right: bytes

    def write(self, number: int) -> bool:
        """Put the files with change `number` into the folder; whether their checksums are right again."""
        random = np.random.default_rng((self.seed, number))
        if self.folder.exists():
            shutil.rmtree(self.folder)
        shutil.copytree(self.valid, self.folder)
        path = self.folder / self.target.changed[number % len(self.target.changed)]
        content, repaired = path.read_bytes(), self.target.repair is not None and random.random() < 0.5
        if not repaired or self.target.repair is None:
            path.write_bytes(changed(content, random))
            return False
        path.write_bytes(self.target.repair(changed(self.target.unpack(content), random), self.folder))
        return True

    def read(self, number: int) -> tuple[str, str]:
        """The outcome and its reason."""
        repaired = self.write(number)
        try:
            found = self.target.read(self.folder)
        except BaseException as error:  # whatever it is, it is what we look for
            return _of_error(error)
        same = _told(found) == self.right
        if self.target.checked and not repaired and not same:
            return "read otherwise", "a changed file below a checksum was read, and gave something else"
        return "read", ""


def _told(found: Any) -> bytes:
    """What a reader gives back, to the last bit."""
    if isinstance(found, np.ndarray):
        return f"{found.dtype}{found.shape}".encode() + found.tobytes()
    if isinstance(found, dict):
        found = tuple(found.items())
    return b"|".join(map(_told, found)) if isinstance(found, list | tuple) else repr(found).encode()


def _of_error(error: BaseException) -> tuple[str, str]:
    chain: list[BaseException] = [error]
    while (inner := chain[-1].__cause__ or chain[-1].__context__) is not None and inner not in chain:
        chain.append(inner)
    why = " <- ".join(f"{type(each).__name__}: {str(each)[:300]}" for each in chain)
    if any(isinstance(each, MemoryError) or "can't allocate memory" in str(each) for each in chain):
        return "over memory", why
    return ("refused" if isinstance(error, VQGenError) else "other error"), why


def _batch(case: _Case, numbers: range, limits: Limits) -> list[tuple[str, str]]:
    """Outcomes of files, up to the first at which the process that reads them ended or hung."""
    incoming, outgoing = os.pipe()
    process = os.fork()
    if process == 0:
        os.close(incoming)
        _read_all(case, numbers, limits, lambda line: os.write(outgoing, line.encode(errors="replace")))
    os.close(outgoing)
    outcomes, text, hung = list[tuple[str, str]](), "", False
    while not hung:
        ready, _, _ = select.select([incoming], [], [], limits.seconds)
        hung = not ready
        block = os.read(incoming, 1 << 16) if ready else b""
        text += block.decode(errors="replace")
        *lines, text = text.split("\n")
        outcomes += [(kind, why) for kind, _, why in (line.partition("\t") for line in lines)]
        if not block:
            break
    os.close(incoming)
    if hung:
        os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    if len(outcomes) < len(numbers):
        outcomes.append(("hang", f"more than {limits.seconds} s") if hung else ("crash", f"status {status}"))
    return outcomes


def _read_all(case: _Case, numbers: range, limits: Limits, tell: Callable[[str], object]) -> None:
    """In the forked process, which ends here."""
    try:
        logging.disable()
        warnings.simplefilter("ignore")
        with open("/proc/self/statm") as file:
            size = int(file.read().split()[0]) * resource.getpagesize()
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 2)
        resource.setrlimit(resource.RLIMIT_AS, (size + limits.memory_bytes,) * 2)
        np.seterr(all="ignore")
        for number in numbers:
            outcome, why = case.read(number)
            tell(f"{outcome}\t{' '.join(why.split())}\n")
        os._exit(0)
    finally:
        os._exit(1)
