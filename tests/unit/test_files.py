"""Files are complete or absent."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from monai_vqgen import files
from monai_vqgen.errors import InputError, OutputExistsError
from monai_vqgen.files import (
    claim_folder,
    forget_earlier,
    hold_alone,
    publish,
    read_json,
    replace_file,
    replace_path,
    write_bytes,
    write_json,
)
from monai_vqgen.handlers import claim_training


@pytest.mark.parametrize("durable", [True, False])
def test_a_file_takes_its_place_only_when_it_is_complete(tmp_path, durable):
    path = tmp_path / "a.nii.gz"
    write_bytes(path, b"old", durable=durable)
    with replace_file(path, durable=durable) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def _interrupted_while_writing(partial):
    if isinstance(partial, Path):
        partial.write_bytes(b"half")
    else:
        partial.write(b"half")
    return KeyboardInterrupt


@pytest.mark.parametrize("opener", [replace_file, replace_path])
def test_an_error_leaves_the_earlier_file_and_nothing_else(tmp_path, opener):
    path = tmp_path / "a.txt"
    write_bytes(path, b"old")
    with pytest.raises(KeyboardInterrupt), opener(path) as partial:
        raise _interrupted_while_writing(partial)
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"a": float("nan")})
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_writers_that_go_by_the_suffix_find_it(tmp_path):
    with replace_path(tmp_path / "a.nii.gz") as partial:
        assert partial.name.endswith(".nii.gz")
        assert partial.parent == tmp_path
        partial.write_bytes(b"x")


def test_only_durable_files_wait_for_the_disk(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", synced.append)
    write_bytes(tmp_path / "a", b"x", durable=False)
    assert not synced
    write_bytes(tmp_path / "a", b"x")
    assert len(synced) == 1


def content(folder: Path) -> dict[str, bytes]:
    """Files by their path in the folder."""
    found = [path for path in folder.rglob("*") if path.is_file() or path.is_symlink()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else b"" for path in found}


def test_earlier_results_are_refused_or_replaced_at_the_end_and_nothing_else_is_touched(tmp_path):
    folder = claim_folder(tmp_path / "a" / "b", ["result.json"], overwrite=False)
    outside = tmp_path / "outside"
    outside.mkdir()
    for name in ("result.json", "images/1.png", "log.txt", "notes.md", "outside/kept"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(name)
    (folder / "link").symlink_to(outside)
    names, by_products = ["result.json", "images", "link", "sample_*"], ["log.*"]
    with pytest.raises(OutputExistsError, match=r"holds result\.json, images, link; .*overwrite"):
        claim_folder(folder, names, overwrite=False, by_products=by_products)
    assert (folder / "log.txt").exists()
    before = content(folder)
    place = claim_folder(folder, names, overwrite=True, by_products=by_products)
    assert place != folder
    (place / "images").mkdir()
    write_json(place / "images" / "2.json", {})
    write_json(place / "result.json", {"new": True})
    assert {name: text for name, text in content(folder).items() if name in before} == before
    publish(place)
    assert sorted(content(folder)) == [".result.json.lock", "images/2.json", "notes.md", "outside/kept", "result.json"]
    assert json.loads((folder / "result.json").read_text()) == {"new": True}
    assert outside.is_dir()
    assert not (folder / "link").is_symlink()


def test_by_products_and_empty_folders_stop_no_run(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "log.txt").touch()
    claim_folder(tmp_path, ["images"], overwrite=False, by_products=["log.txt"])
    assert (tmp_path / "log.txt").exists()


def test_a_run_that_writes_nothing_replaces_nothing(tmp_path):
    write_json(tmp_path / "result.json", {})
    publish(claim_folder(tmp_path, ["result.json"], overwrite=True))
    assert sorted(content(tmp_path)) == [".result.json.lock", "result.json"]


def test_a_first_run_writes_to_the_folder_itself(tmp_path):
    assert claim_folder(tmp_path, ["result.json"], overwrite=True) == tmp_path
    assert publish(tmp_path) == tmp_path


def test_results_that_were_set_aside_go_when_the_run_has_ended_and_come_back_where_it_left_none(tmp_path):
    names, states = ["model.pt", "model.json"], ["state.pt", "images/*"]
    for name in ("model.pt", "model.json", "state.pt", "images/1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_bytes(tmp_path / name, b"earlier")
    before = content(tmp_path)
    options = {"by_products": states, "set_aside": True}
    assert claim_folder(tmp_path, names, overwrite=True, **options) == tmp_path
    assert sorted(content(tmp_path)) == [
        *(f".model.pt.earlier/{name}" for name in ("images/1.png", "model.json", "model.pt", "state.pt")),
        ".model.pt.lock",
    ]
    write_bytes(tmp_path / "state.pt", b"of a run that was cut off before it had weights")
    with pytest.raises(OutputExistsError, match=r"model\.pt, model\.json"):
        claim_folder(tmp_path, names, overwrite=False, **options)
    assert {name: text for name, text in content(tmp_path).items() if name in before} == before
    for kept, text in (b"earlier", b"newer"), (b"newer", b"new"):  # the newest that has weights
        claim_folder(tmp_path, names, overwrite=True, **options)
        write_bytes(tmp_path / "state.pt", b"of a run that was cut off before it had weights")
        claim_folder(tmp_path, names, overwrite=True, **options)
        assert (tmp_path / ".model.pt.earlier" / "model.pt").read_bytes() == kept
        assert not (tmp_path / "state.pt").exists()
        write_bytes(tmp_path / "model.pt", text)
    forget_earlier(tmp_path)
    assert sorted(content(tmp_path)) == [".model.pt.lock", "model.pt"]
    assert (tmp_path / "model.pt").read_bytes() == b"new"


ENDING = """
import os, sys
from pathlib import Path
from monai_vqgen.files import claim_folder, write_bytes
folder, aside = Path(sys.argv[1]), sys.argv[2] == "aside"
claim_folder(folder, ["model.pt"], overwrite=True, by_products=["log", "state.pt"], set_aside=aside)
write_bytes(folder / "log", b"")
if aside:
    write_bytes(folder / "state.pt", b"of the start")
if sys.argv[3] == "fails":
    raise SystemExit(7)
os.abort()
"""


@pytest.mark.parametrize("how", ["aside", "beside"])
@pytest.mark.parametrize("end", ["fails", "is killed"])
def test_a_run_that_ends_before_its_first_result_leaves_the_earlier_one(tmp_path, how, end):
    write_bytes(tmp_path / "model.pt", b"earlier")
    command = [sys.executable, "-c", ENDING, str(tmp_path), how, end]
    assert subprocess.run(command, capture_output=True, check=False, timeout=120).returncode in (7, -6)
    if end == "is killed":
        options = {"by_products": ["log", "state.pt"], "set_aside": how == "aside"}
        with pytest.raises(OutputExistsError):
            claim_folder(tmp_path, ["model.pt"], overwrite=False, **options)
    assert (tmp_path / "model.pt").read_bytes() == b"earlier"
    assert {path.name for path in tmp_path.iterdir()} <= {"model.pt", "log", ".model.pt.lock"}


PUBLISHING = """
import os, signal, sys
from pathlib import Path
from monai_vqgen.files import claim_folder, publish, write_bytes
folder, left = Path(sys.argv[1]), int(sys.argv[2])
place = claim_folder(folder, ["list.json", "images/*"], overwrite=True)
(place / "images").mkdir()
for name in ("images/2", "images/3", "list.json"):
    write_bytes(place / name, b"new")
def counted(call):
    def killing(*arguments, **options):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*arguments, **options)
    return killing
os.replace, os.unlink, os.rmdir = counted(os.replace), counted(os.unlink), counted(os.rmdir)
Path.unlink = counted(Path.unlink)
publish(place)
"""


def test_a_kill_at_any_step_of_the_swap_leaves_old_or_new_whole_once_the_folder_is_claimed_again(tmp_path):
    """Whole: each of its files has its content, and none of the other's is left."""
    old = {"images/1": b"old", "images/2": b"old", "list.json": b"old"}
    new = {"images/2": b"new", "images/3": b"new", "list.json": b"new"}
    outcomes = []
    for step in range(40):
        folder = tmp_path / str(step)
        (folder / "images").mkdir(parents=True)
        for name, text in old.items():
            write_bytes(folder / name, text)
        command = [sys.executable, "-c", PUBLISHING, str(folder), str(step)]
        status = subprocess.run(command, capture_output=True, check=False, timeout=120).returncode
        visible = {name: text for name, text in content(folder).items() if not name.startswith(".")}
        assert visible in (old, new) or "list.json" not in visible
        with pytest.raises(OutputExistsError):
            claim_folder(folder, ["list.json", "images/*"], overwrite=False)
        found = {name: text for name, text in content(folder).items() if not name.endswith(".lock")}
        assert found in (old, new)
        outcomes.append(found == new)
        if status == 0:
            break
    assert status == 0
    assert outcomes == sorted(outcomes)
    assert {True, False} == set(outcomes)


def test_what_dead_processes_have_left_is_removed_and_what_living_ones_write_is_not(tmp_path):
    with replace_path(tmp_path / "images.png") as mine:
        host = mine.name.split("-")[0]
        process = subprocess.Popen([sys.executable, "-c", ""])
        process.wait()
        dead, other = f"{host}-{process.pid}.partial.a.png", f".00000000-{process.pid}.partial.a.png"
        kept = [f"{host}-{os.getppid()}.partial.a.png", other, f".{process.pid}.partial.a.png", ".hidden"]
        for name in (dead, *kept, mine.name):
            (tmp_path / name).touch()
        (tmp_path / f".00000000-{process.pid}.partial.result.json").mkdir()  # of another machine; the lock is ours
        claim_folder(tmp_path, ["result.json"], overwrite=False)
        assert {path.name for path in tmp_path.iterdir()} == {*kept, mine.name, ".result.json.lock"}


def test_a_sealed_object_is_refused_for_a_turned_bit_and_others_are_taken_as_they_are(tmp_path):
    path, told = tmp_path / "record.json", {"plane": "axial", "pixel_mm": 1.736, "sizes": [512, 512], "license": None}
    write_json(path, told, sealed=True)
    assert read_json(path) == told
    intact = path.read_bytes()
    for bit in range(8 * len(intact)):
        turned = bytearray(intact)
        turned[bit // 8] ^= 1 << bit % 8
        path.write_bytes(turned)
        with contextlib.suppress(ValueError):
            assert read_json(path) == told
    write_json(path, told)
    assert read_json(path) == told
    path.write_text("[]")
    with pytest.raises(ValueError, match="not a dictionary"):
        read_json(path)


def test_a_lock_has_the_mode_that_the_umask_gives_and_one_that_cannot_be_opened_is_explained(tmp_path, monkeypatch):
    earlier = os.umask(0o027)
    try:
        claim_folder(tmp_path, ["result.json"], overwrite=False)
    finally:
        os.umask(earlier)
    assert (tmp_path / ".result.json.lock").stat().st_mode & 0o777 == 0o640

    def refused(*_):
        raise PermissionError("not yours")

    monkeypatch.setattr(os, "open", refused)
    with pytest.raises(OutputExistsError, match=r"other\.json\.lock is the lock of another user's.*remove"):
        claim_folder(tmp_path, ["other.json"], overwrite=False)


def test_two_claims_of_one_process_have_two_places_and_the_second_leaves_the_first(tmp_path, monkeypatch):
    write_json(tmp_path / "result.json", {})
    first = claim_folder(tmp_path, ["result.json"], overwrite=True)
    write_json(first / "result.json", {"by": 1})
    monkeypatch.chdir(tmp_path)
    second = claim_folder(Path(), ["result.json"], overwrite=True)
    write_json(second / "result.json", {"by": 2})
    for by, place in (1, first), (2, second):
        publish(place)
        assert read_json(tmp_path / "result.json") == {"by": by}


def test_where_nothing_can_be_locked_the_place_of_a_run_that_may_live_stays(tmp_path, monkeypatch, caplog):
    def refused(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    live = tmp_path / ".00000000-1-0.partial.result.json"
    live.mkdir()
    with monkeypatch.context() as patched:
        patched.setattr(fcntl, "lockf", refused)
        claim_folder(tmp_path, ["result.json"], overwrite=False)
    assert "cannot be locked" in caplog.text
    assert "start no second run into it" in caplog.text
    assert live.is_dir()
    claim_folder(tmp_path, ["result.json"], overwrite=False)
    assert not live.exists()


def test_results_behind_a_link_to_another_disk_are_set_aside_brought_back_and_replaced(tmp_path, monkeypatch):
    folder, disk, replace = tmp_path / "run", tmp_path / "disk", os.replace

    def across(source, target):
        if (disk in Path(source).resolve().parents) != (disk in Path(target).resolve().parents):
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        replace(source, target)

    monkeypatch.setattr(os, "replace", across)
    disk.mkdir()
    folder.mkdir()
    (folder / "images").symlink_to(disk)
    write_bytes(folder / "model.pt", b"earlier")
    write_bytes(disk / "1", b"earlier")
    (disk / "2").symlink_to("nowhere")
    (disk / "notes").write_text("mine")
    names, options = ["model.pt"], {"by_products": ["images/[0-9]*"], "set_aside": True}
    claim_folder(folder, names, overwrite=True, **options)
    assert [path.name for path in disk.iterdir()] == ["notes"]
    with pytest.raises(OutputExistsError):
        claim_folder(folder, names, overwrite=False, **options)
    assert (disk / "1").read_bytes() == b"earlier"
    assert os.readlink(disk / "2") == "nowhere"
    place = claim_folder(folder, ["model.pt", "images/[0-9]*"], overwrite=True)
    (place / "images").mkdir()
    write_bytes(place / "images" / "3", b"new")
    publish(place)
    assert sorted(path.name for path in disk.iterdir()) == ["3", "notes"]
    assert (folder / "images").is_symlink()


def test_containers_of_one_host_name_are_told_apart(monkeypatch):
    assert files._host() == files._HOST
    stat, other = os.stat, os.stat("/proc/self/ns/mnt")
    monkeypatch.setattr(os, "stat", lambda path, **how: other if path == "/proc/self/ns/pid" else stat(path, **how))
    assert files._host() != files._HOST


def test_a_users_checksums_are_no_seal(tmp_path):
    told = {"image": "sha256:" + 64 * "0", "seals": "sha256:" + 64 * "1", "meal": 1}
    write_json(tmp_path / "a.json", told)
    assert read_json(tmp_path / "a.json") == told


FORKING = """
import os, sys
from pathlib import Path
from monai_vqgen.errors import OutputExistsError
from monai_vqgen.files import claim_folder, hold_alone
folder = Path(sys.argv[1])
(folder / "result.json").touch()
place = claim_folder(folder, ["result.json"], overwrite=True)
if not (child := os.fork()):
    try:
        hold_alone(folder, "result.json")
    except OutputExistsError:
        sys.exit(7)  # through what Python does at its end
    sys.exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
assert (folder / ".result.json.lock").exists()
assert place.is_dir()
"""


def test_a_forked_process_holds_no_lock_of_its_parents_and_takes_nothing_of_it_away(tmp_path):
    command = [sys.executable, "-c", FORKING, str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert ended.returncode == 0, ended.stderr


def test_a_lock_file_that_is_removed_between_its_opening_and_the_lock_is_not_the_one_that_is_held(
    tmp_path, monkeypatch
):
    path, lock = tmp_path / ".model.pt.lock", fcntl.lockf

    def after_its_holder_has_left(descriptor, how):
        monkeypatch.setattr(fcntl, "lockf", lock)
        path.unlink()
        lock(descriptor, how)

    monkeypatch.setattr(fcntl, "lockf", after_its_holder_has_left)
    assert hold_alone(tmp_path, "model.pt")
    assert os.path.samestat(os.fstat(files._held[os.getpid(), path]), path.stat())


def test_a_lock_file_that_its_holder_removes_while_it_is_looked_at_is_made_anew(tmp_path, monkeypatch):
    path, look = tmp_path / ".model.pt.lock", os.lstat
    path.touch()

    def as_its_holder_leaves(name, **options):
        monkeypatch.setattr(os, "lstat", look)
        path.unlink()
        return look(name, **options)

    monkeypatch.setattr(os, "lstat", as_its_holder_leaves)
    assert hold_alone(tmp_path, "model.pt")
    assert path.is_file()


def test_at_its_end_a_process_removes_its_lock_files_wherever_it_works_and_no_others(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("mine", "anew"):
        Path(name).mkdir()
        hold_alone(Path(name), "model.pt")
    (tmp_path / "anew" / ".model.pt.lock").unlink()
    (tmp_path / "anew" / ".model.pt.lock").touch()  # that of another process, in a folder that was made anew
    monkeypatch.chdir("/")
    files._leave()
    assert [path.name for path in tmp_path.rglob("*.lock")] == [".model.pt.lock"]
    assert (tmp_path / "anew" / ".model.pt.lock").exists()


def test_results_are_on_the_disk_before_they_replace_the_earlier_ones(tmp_path, monkeypatch):
    write_json(tmp_path / "result.json", {})
    place = claim_folder(tmp_path, ["result.json", "images/*"], overwrite=True)
    (place / "images").mkdir()
    for name in ("result.json", "images/1"):
        write_bytes(place / name, b"{}", durable=False)
    waited, replace = [], os.replace
    monkeypatch.setattr(os, "fsync", lambda file: waited.append(os.readlink(f"/proc/self/fd/{file}")))
    monkeypatch.setattr(os, "replace", lambda source, target: waited.append("rename") or replace(source, target))
    publish(place)
    first = waited[: waited.index("rename")]
    assert {str(place / name) for name in ("result.json", "images/1")} <= set(first)


def test_files_have_the_mode_that_the_umask_gives(tmp_path):
    earlier = os.umask(0o027)
    try:
        write_bytes(tmp_path / "a", b"x")
        write_json(tmp_path / "b", {})
        with replace_path(tmp_path / "c") as partial:
            partial.write_bytes(b"x")
    finally:
        os.umask(earlier)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o640}


def test_temporary_files_of_other_runs_are_no_results_and_those_of_dead_ones_go_wherever_results_lie(
    tmp_path, monkeypatch
):
    host = files._HOST
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    (tmp_path / "images").mkdir()
    (tmp_path / "more").mkdir()
    (tmp_path / "images" / "1").touch()
    living = [f".{host}-{os.getppid()}-0.partial.2", f".{host}-1-0.partial.3"]
    dead = [f"images/.{host}-{process.pid}-0.partial.2", f"more/.{host}-{process.pid}-0.partial.2"]
    for name in (*(f"images/{name}" for name in living), *dead):
        (tmp_path / name).touch()
    kill = os.kill

    def as_an_ordinary_user(number, signal):
        if number == 1:
            raise PermissionError("of another user")
        kill(number, signal)

    monkeypatch.setattr(os, "kill", as_an_ordinary_user)
    place = claim_folder(tmp_path, ["images/*", "more"], overwrite=True)
    (place / "images").mkdir()
    write_bytes(place / "images" / "4", b"new")
    publish(place)
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == sorted([*living, "4"])
    assert not list(tmp_path.glob("more/.*"))


def test_of_a_link_and_what_lies_behind_it_the_link_alone_is_removed(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "1").touch()
    for names in (["link/1", "link"], ["link", "link/1"]):
        (tmp_path / "link").symlink_to("disk")
        files._remove(tmp_path, names)
        assert [path.name for path in tmp_path.rglob("*")] == ["disk", "1"]


def test_results_that_a_kill_has_left_half_set_aside_come_back(tmp_path):
    (tmp_path / ".model.pt.aside").mkdir()
    write_bytes(tmp_path / ".model.pt.aside" / "model.pt", b"earlier")
    write_bytes(tmp_path / "model.json", b"earlier")
    with pytest.raises(OutputExistsError, match=r"holds model\.pt, model\.json"):
        claim_folder(tmp_path, ["model.pt", "model.json"], overwrite=False, set_aside=True)
    assert sorted(content(tmp_path)) == [".model.pt.lock", "model.json", "model.pt"]


def test_a_full_disk_is_told_with_the_file_that_was_to_be_written(tmp_path):
    with pytest.raises(OSError, match=r"No space.*a\.pt") as caught, replace_file(tmp_path / "a.pt"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.filename == str(tmp_path / "a.pt")


def odd(path, kind, victim):
    {
        "folder": path.mkdir,
        "pipe": lambda: os.mkfifo(path),
        "link to a file": lambda: path.symlink_to(victim / "model.pt"),
        "link to a folder": lambda: path.symlink_to(victim),
        "link to nothing": lambda: path.symlink_to(victim / "made"),
        "device": lambda: path.symlink_to("/dev/null"),
    }[kind]()


ODD = ["folder", "pipe", "link to a file", "link to a folder", "link to nothing", "device"]


@pytest.fixture
def victim(tmp_path):
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim" / "model.pt").write_text("precious")
    yield tmp_path / "victim"
    assert [(path.name, path.read_text()) for path in (tmp_path / "victim").iterdir()] == [("model.pt", "precious")]


@pytest.mark.parametrize("kind", ODD)
def test_what_lies_in_the_place_of_a_lock_is_not_opened(tmp_path, victim, kind):
    odd(tmp_path / ".model.pt.lock", kind, victim)
    with pytest.raises(OutputExistsError, match="is no lock, but a link, folder, pipe or device: remove it"):
        claim_folder(tmp_path, ["model.pt"], overwrite=False)


@pytest.mark.parametrize("kind", ODD[1:])
@pytest.mark.parametrize(
    "name", [".model.pt.earlier", ".model.pt.aside", ".{}-4194297-0.partial.model.pt", ".{}-4194297-0.ready.model.pt"]
)
def test_what_lies_in_the_place_of_leftovers_is_removed_and_no_link_is_followed(tmp_path, victim, kind, name):
    path = tmp_path / name.format(files._HOST)
    odd(path, kind, victim)
    claim_folder(tmp_path, ["model.pt"], overwrite=False, set_aside=True)
    assert not os.path.lexists(path)
    assert not (tmp_path / "model.pt").exists()


@pytest.mark.parametrize(
    "told",
    [
        *({"gone": ["../victim/model.pt"]}, {"gone": ["{victim}/model.pt"]}, {"gone": [".."]}, {"gone": [""]}),
        *({"gone": 3}, {"last": "../victim/new"}, {"last": 3}),
    ],
)
def test_a_swap_that_leads_out_of_its_folder_is_refused_and_its_results_stay(tmp_path, victim, told):
    ready = tmp_path / "run" / f".{files._HOST}-4194297-0.ready.model.pt"
    ready.mkdir(parents=True)
    (ready / "model.pt").write_text("new")
    text = json.dumps({"gone": [], "last": "model.pt", **told}).replace("{victim}", str(victim))
    (ready / ".swap.json").write_text(text)
    with pytest.raises(OutputExistsError, match=r"complete results, and its \.swap\.json is damaged"):
        claim_folder(tmp_path / "run", ["model.pt"], overwrite=True)
    assert (ready / "model.pt").read_text() == "new"


@pytest.mark.parametrize("name", ["a" * 300, "a\0b", "file", "file/a"])
def test_a_folder_that_cannot_be_made_is_one_error(tmp_path, name):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"cannot be made: .* Give another folder"):
        claim_folder(tmp_path / name, ["model.pt"], overwrite=False)
    with pytest.raises(InputError, match=r"cannot be made: .* Give another folder"):
        claim_training(str(tmp_path / name), resume=True)
