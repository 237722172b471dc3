"""Fetching a published network, from a server on this machine that behaves as told."""

import dataclasses
import hashlib
import http.server
import io
import json
import os
import shutil
import signal
import stat
import threading
import time
import zipfile

import pytest
import tensorflow as tf

import cifar10_challenge.fetch_model
import mnist_challenge.fetch_model
from common import checkpoints, fetching, files
from common.errors import InputError
from common.original_checkpoints import load_original
from common.scripts import fetch_model
from mnist_challenge.challenge import MNIST
from tests.helpers import ROOT, content, error_line, refused, run, start
from tests.originals import MNIST_CONFIG, original_mnist

tf1 = tf.compat.v1

SCRIPT = ROOT / "mnist_challenge" / "fetch_model.py"


def sha256(data):
    return hashlib.sha256(data).hexdigest()


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A training directory as the originals' code leaves it, of the smallest network."""
    directory = tmp_path_factory.mktemp("original") / "adv_trained"
    directory.mkdir()
    with tf.Graph().as_default(), tf1.Session() as session:
        original_mnist(scale=1)
        session.run(tf1.global_variables_initializer())
        saver = tf1.train.Saver(max_to_keep=3)
        saver.save(session, str(directory / "checkpoint"), global_step=99900)
    (directory / "config.json").write_text(json.dumps(MNIST_CONFIG))
    assert {path.suffix for path in directory.iterdir()} >= {".meta", ".index", ".json", ""}
    return directory


def pack(members):
    """A zip file's bytes; `members` are pairs (name or ZipInfo, content)."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as zipped:
        for name, data in members:
            zipped.writestr(name, data)
    return buffer.getvalue()


def layout(original):
    """The members of an archive of the originals, and what a Mac adds to one."""
    members = [("models/", ""), ("models/adv_trained/", "")]
    members += [(f"models/adv_trained/{name}", data) for name, data in content(original).items()]
    junk = "__MACOSX/models/adv_trained/._checkpoint-99900.index"
    return [*members, (junk, "Mac OS X")]


@pytest.fixture(scope="module")
def archive(original):
    return pack(layout(original))


class Server(http.server.ThreadingHTTPServer):
    """Serves `body`; each request meets the next of `faults`: "cut", "stall" or an HTTP error.

    Args:
        body: bytes of the one file there is.
        ranges: whether the server honours Range.
    """

    daemon_threads = True
    body = b""
    ranges = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.faults, self.asked = [], []
        self.url = f"http://127.0.0.1:{self.server_port}/master/adv_trained.zip"
        self.closing = threading.Event()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server, asked = self.server, self.headers["Range"]
        server.asked.append(asked)
        fault = server.faults.pop(0) if server.faults else None
        if isinstance(fault, int):
            self.send_error(fault)
            return
        total, ranged = len(server.body), asked is not None and server.ranges
        first = int(asked.removeprefix("bytes=").removesuffix("-")) if ranged else 0
        if first >= total:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{total}")
            self.end_headers()
            return
        part = server.body[first:]
        self.send_response(206 if ranged else 200)
        if ranged:
            self.send_header("Content-Range", f"bytes {first}-{total - 1}/{total}")
        if fault != "no length":
            self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part[: len(part) // 2] if fault in ("cut", "stall") else part)
        if fault == "stall":
            server.closing.wait(60)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(archive, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server() as server:
        server.body = archive
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.closing.set()
        server.shutdown()
        thread.join()


def source_of(server, **changes):
    source = fetching.Source(url=server.url, max_bytes=10_000_000, timeout=0.5, pauses=(0.01, 0.02))
    return dataclasses.replace(source, **changes)


def fetch(server, models_dir, **changes):
    return fetching.fetch(MNIST, "adv_trained", source_of(server, **changes), models_dir)


def names_in(directory):
    return sorted(path.name for path in directory.iterdir())


def is_whole(models_dir, original):
    """Whether `models_dir` holds the network of `original`, and nothing else."""
    model, _ = load_original(MNIST, original)
    digest = checkpoints.LoadedModel(model, model.weights, original).digest()
    assert names_in(models_dir) == ["adv_trained"]
    return checkpoints.load_model(MNIST, models_dir / "adv_trained").digest() == digest


# The model.


def test_a_fetched_network_is_a_model_with_its_original_and_a_card(
    server, original, archive, tmp_path, capsys
):
    path = fetch(server, tmp_path / "a" / "b")
    assert path == tmp_path / "a" / "b" / "adv_trained"
    assert is_whole(tmp_path / "a" / "b", original)
    assert content(path / "original") == content(original)
    card = json.loads((path / "card.json").read_text())
    (data,) = original.glob("*.data-*")
    assert time.strptime(card.pop("fetched"), "%Y-%m-%d")
    assert card == {
        "name": "adv_trained",
        "challenge": "MNIST",
        "url": server.url,
        "archive": {"sha256": sha256(archive), "bytes": len(archive)},
        "data": {data.name: {"sha256": sha256(data.read_bytes()), "bytes": data.stat().st_size}},
        "published_sha256": None,
        "step": 99900,
        "network": {"scale": 1},
        "parameters": 13514,
        "model_digest": checkpoints.load_model(MNIST, path).digest(),
    }
    out = capsys.readouterr().out
    assert "adv_trained: step 99900, scale 1, 13,514 parameters\n" in out
    assert f"sha256 of the archive: {sha256(archive)} (no digest is published)\n" in out
    assert path.stat().st_mode & 0o777 == 0o755  # and not that of a scratch directory


def test_a_second_call_is_a_no_op_that_says_so(server, tmp_path, capsys):
    path = fetch(server, tmp_path)
    before = {file: file.stat().st_mtime_ns for file in path.rglob("*")}
    capsys.readouterr()
    assert fetch(server, tmp_path) == path
    assert capsys.readouterr().out == (
        f"adv_trained: already in {path}; delete that to fetch it again\n"
    )
    assert server.asked == [None]
    assert {file: file.stat().st_mtime_ns for file in path.rglob("*")} == before


def test_it_is_found_by_name_and_named_in_the_error(server, tmp_path):
    challenge = dataclasses.replace(MNIST, directory=tmp_path)
    path = fetch(server, tmp_path / "models" / "published")
    assert checkpoints.find_model(challenge, "published/adv_trained") == path
    assert checkpoints.find_model(challenge, "published/adv_trained/original").is_dir()
    refused("shipped model (published/adv_trained), got x", checkpoints.find_model, challenge, "x")


@pytest.mark.parametrize("where", ["archive", "data"])
def test_the_published_digest_may_be_of_the_archive_or_of_the_data_file(
    server, original, archive, tmp_path, where, capsys
):
    (data,) = original.glob("*.data-*")
    digest = sha256(archive if where == "archive" else data.read_bytes())
    assert is_whole(fetch(server, tmp_path, sha256=digest).parent, original)
    assert "(as published)" in capsys.readouterr().out


def test_another_digest_is_an_error_that_leaves_nothing(server, archive, tmp_path):
    message = refused("expected the published sha256 000", fetch, server, tmp_path, sha256="0" * 64)
    assert sha256(archive) in message
    assert names_in(tmp_path) == []


def test_the_true_data_file_beside_another_checkpoint_does_not_pass(server, original, tmp_path):
    (data,) = original.glob("*.data-*")
    decoy = "models/adv_trained/checkpoint-1.data-00000-of-00001"
    server.body = pack([*layout(original), (decoy, "other weights")])
    digest = sha256(data.read_bytes())
    refused("expected the published sha256", fetch, server, tmp_path, sha256=digest)


def test_a_directory_that_is_not_a_model_is_not_replaced(server, tmp_path):
    (tmp_path / "adv_trained").mkdir()
    (tmp_path / "adv_trained" / "notes").write_text("mine")
    refused("expected a fetched model or nothing in", fetch, server, tmp_path)
    assert (tmp_path / "adv_trained" / "notes").read_text() == "mine" and not server.asked


def test_a_models_dir_that_cannot_be_written(server, tmp_path):
    (tmp_path / "file").touch()
    refused("--models_dir: cannot write", fetch, server, tmp_path / "file")
    refused("--models_dir: cannot write", fetch, server, tmp_path / "file" / "below")
    refused("--models_dir: cannot write", fetch, server, tmp_path / ("x" * 300))
    refused("--models_dir: cannot write", fetch, server, tmp_path / "nul\0")
    assert not server.asked


# The transfer.


def test_a_broken_transfer_is_resumed_at_once(server, original, archive, tmp_path, capsys):
    server.faults = ["cut"]
    fetch(server, tmp_path)
    half = len(archive) // 2
    assert server.asked == [None, f"bytes={half}-"]
    assert is_whole(tmp_path, original)
    err = capsys.readouterr().err
    line = f"the connection ended after {half:,} of {len(archive):,} bytes; next try in 0.01 s"
    assert line in err and "adv_trained.zip: 100%" in err


def test_a_stalled_transfer_is_given_up_and_resumed(server, original, archive, tmp_path, capsys):
    server.faults = ["stall"]
    began = time.monotonic()
    fetch(server, tmp_path)
    assert server.asked == [None, f"bytes={len(archive) // 2}-"]
    assert is_whole(tmp_path, original)
    assert "timed out; next try" in capsys.readouterr().err and time.monotonic() - began > 0.5


def test_a_later_call_resumes_where_the_tries_ended(server, original, archive, tmp_path):
    server.faults = [503, "cut", 503, 503]
    message = refused("HTTP Error 503", fetch, server, tmp_path)
    assert server.url in message and "--from_file=adv_trained.zip" in message
    assert len(server.asked) == 4  # of the pauses there are two, which begin anew after the second
    part = tmp_path / "adv_trained.zip.part"
    assert names_in(tmp_path) == [part.name]
    assert part.read_bytes() == archive[: len(archive) // 2]
    server.asked.clear()
    fetch(server, tmp_path)
    assert server.asked == [f"bytes={len(archive) // 2}-"]
    assert is_whole(tmp_path, original)


def test_a_download_without_ranges_starts_again(server, original, tmp_path):
    server.ranges, server.faults = False, ["cut"]
    fetch(server, tmp_path)
    assert len(server.asked) == 2 and server.asked[1] is not None
    assert is_whole(tmp_path, original)


def test_a_server_that_does_not_state_the_size(server, original, tmp_path):
    server.faults = ["no length"]
    fetch(server, tmp_path)
    assert is_whole(tmp_path, original)


def test_a_complete_part_is_used(server, original, archive, tmp_path):
    (tmp_path / "adv_trained.zip.part").write_bytes(archive)
    fetch(server, tmp_path)
    assert server.asked == [f"bytes={len(archive)}-"]
    assert is_whole(tmp_path, original)


def test_a_part_longer_than_the_file_is_discarded(server, original, archive, tmp_path):
    (tmp_path / "adv_trained.zip.part").write_bytes(archive + b"more")
    fetch(server, tmp_path)
    assert server.asked == [f"bytes={len(archive) + 4}-", None]
    assert is_whole(tmp_path, original)


def test_a_part_of_another_file_is_refused_and_not_kept(server, original, archive, tmp_path):
    (tmp_path / "adv_trained.zip.part").write_bytes(bytes(len(archive) // 2))
    refused("expected a zip file in", fetch, server, tmp_path)
    assert names_in(tmp_path) == []
    fetch(server, tmp_path)
    assert is_whole(tmp_path, original)


def test_an_archive_of_an_interrupted_call_is_not_downloaded_again(
    server, original, archive, tmp_path
):
    (tmp_path / "adv_trained.zip").write_bytes(archive)
    fetch(server, tmp_path)
    assert not server.asked and is_whole(tmp_path, original)


def test_a_missing_file_is_not_asked_for_twice(server, tmp_path):
    server.faults = [404]
    message = refused("HTTP Error 404: Not Found", fetch, server, tmp_path)
    assert server.url in message and len(server.asked) == 1
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("fault", [None, "no length"])
def test_a_download_above_the_limit_is_ended(server, archive, tmp_path, fault):
    server.faults = [fault]
    limit = len(archive) - 1
    refused(f"expected at most {limit:,} bytes of", fetch, server, tmp_path, max_bytes=limit)
    assert names_in(tmp_path) == []


def test_without_a_network(server, tmp_path, monkeypatch):
    monkeypatch.delenv("no_proxy")  # so that the proxy of conftest.py, which is none, is asked
    refused("Connection refused", fetch, server, tmp_path)
    assert names_in(tmp_path) == []
    refused("cannot download", fetch, server, tmp_path, url="http://there.is.none.invalid/a.zip")


def test_a_full_disk_is_not_reported_as_an_error_of_the_network(
    server, original, archive, tmp_path
):
    """It is said at once, without another try, and what came is resumed."""
    if not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")
    part = tmp_path / "adv_trained.zip.part"
    part.symlink_to("/dev/full")
    message = refused("No space left on device", fetch, server, tmp_path)
    assert message == f"cannot write {part}: No space left on device" and len(server.asked) == 1
    part.unlink()
    part.write_bytes(archive[:100])
    fetch(server, tmp_path)
    assert server.asked[1:] == ["bytes=100-"] and is_whole(tmp_path, original)


def test_a_directory_instead_of_the_part_is_refused(server, tmp_path):
    (tmp_path / "adv_trained.zip.part").mkdir()
    message = refused("cannot write", fetch, server, tmp_path)
    assert message.endswith("adv_trained.zip.part: Is a directory")


@pytest.mark.parametrize("place", ["unpack", "export", "write_json"])
def test_a_full_disk_keeps_the_archive_and_leaves_nothing_else(
    server, original, archive, tmp_path, monkeypatch, place
):
    def full(*args, **kwargs):
        if place == "unpack":
            raise OSError(28, "No space left on device")
        raise InputError("cannot write it: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints if place == "export" else fetching, place, full)
        refused("No space left on device", fetch, server, tmp_path)
    assert names_in(tmp_path) == ["adv_trained.zip"]
    fetch(server, tmp_path)
    assert len(server.asked) == 1 and is_whole(tmp_path, original)


# Left over folders, and other processes.


def test_what_a_killed_fetch_left_is_removed(server, original, tmp_path):
    for name in (".adv_trained.abcd_123", ".adv_trained.zyxwvuts"):
        (tmp_path / name / "unpacked").mkdir(parents=True)
        (tmp_path / name / "unpacked" / "file").write_text("")
    (tmp_path / ".adv_trained.lock").write_text("")
    others = [".natural.abcd_123", ".adv_trained.mine", "adv_trained.abcd_123", ".adv_trained"]
    for name in others:
        (tmp_path / name).mkdir()
    (tmp_path / ".adv_trained.filefile").write_text("no directory")
    fetch(server, tmp_path)
    left = [name for name in names_in(tmp_path) if name != "adv_trained"]
    assert left == sorted([*others, ".adv_trained.filefile"])


PROGRAM = """
import pathlib, sys, time
from common import fetching
from mnist_challenge.challenge import MNIST
own = fetching.unpack
def unpack(*args):
    own(*args)
    print("unpacked", flush=True)
    time.sleep(600)
fetching.unpack = unpack
source = fetching.Source(url="http://none.invalid/", max_bytes=10_000_000)
fetching.fetch(MNIST, "adv_trained", source, sys.argv[1], sys.argv[2])
"""


@pytest.mark.skipif(files.fcntl is None, reason="needs fcntl")
def test_another_process_is_left_alone_until_it_is_killed(server, original, archive, tmp_path):
    models_dir, file = tmp_path / "models", tmp_path / "a.zip"
    file.write_bytes(archive)
    process = start("-c", PROGRAM, models_dir, file, cwd=ROOT)
    assert process.stdout.readline() == "unpacked\n"
    before = names_in(models_dir)
    assert len(before) == 2 and ".adv_trained.lock" in before
    held = f"not in use, got {models_dir}/adv_trained, which process {process.pid} on "
    refused(held, fetch, server, models_dir)
    # It leaves another model's files alone.
    source = source_of(server)
    fetching.fetch(MNIST, "other", source, models_dir, file)
    assert names_in(models_dir) == [*before, "other"]
    process.kill()
    process.communicate()
    assert names_in(models_dir) == [*before, "other"]
    shutil.rmtree(models_dir / "other")
    fetch(server, models_dir)
    assert is_whole(models_dir, original)


@pytest.mark.parametrize("fault", ["no fcntl", "no locks"])
def test_without_locks_nothing_is_removed(server, original, tmp_path, monkeypatch, fault):
    if fault == "no fcntl":
        monkeypatch.setattr(files, "fcntl", None)
    else:

        def flock(*args):
            raise OSError(95, "Operation not supported")

        monkeypatch.setattr(files.fcntl, "flock", flock)
    (tmp_path / ".adv_trained.abcd_123").mkdir()
    fetch(server, tmp_path)
    assert names_in(tmp_path) == [".adv_trained.abcd_123", "adv_trained"]


# The archive.


def member(name, kind=stat.S_IFREG):
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, (kind | 0o644) << 16
    info.compress_type = zipfile.ZIP_DEFLATED
    return info


@pytest.mark.parametrize(
    "bad, expected",
    [
        ((member("{outside}/file"), "x"), "expected paths within"),
        ((member("models/../../file"), "x"), "expected paths within"),
        ((member("models\\..\\..\\file"), "x"), "expected paths within"),
        ((member("C:/file"), "x"), "expected paths within"),
        ((member("models/link", stat.S_IFLNK), "{outside}"), "got a link or device"),
        ((member("models/pipe", stat.S_IFIFO), ""), "got a link or device"),
        ((member("models/adv_trained/config.json/file"), "x"), "twice, or in a file"),
        ((member("models/bomb"), bytes(20_000_000)), "expected at most 10,000,000 bytes in"),
    ],
    ids=["absolute", "up", "up, Windows", "drive", "link", "pipe", "in a file", "bomb"],
)
def test_malicious_archives_are_refused(server, original, tmp_path, bad, expected):
    outside, models_dir = tmp_path / "outside", tmp_path / "models"
    outside.mkdir()
    info, data = bad
    info = member(
        info.filename.replace("{outside}", str(outside)), stat.S_IFMT(info.external_attr >> 16)
    )
    if isinstance(data, str):
        data = data.replace("{outside}", str(outside))
    server.body = pack([*layout(original), (info, data)])
    message = refused(expected, fetch, server, models_dir)
    assert str(models_dir / "adv_trained.zip") in message
    assert names_in(outside) == [] and names_in(models_dir) == []
    assert names_in(tmp_path) == ["models", "outside"]


def test_a_zip_bomb_writes_no_more_than_its_stated_size(tmp_path):
    """The file's headers say 1 byte, and what is packed is 20 million."""
    data = pack([("bomb", bytes(20_000_000))])
    size = (20_000_000).to_bytes(4, "little")
    assert data.count(size) == 2
    (tmp_path / "bomb.zip").write_bytes(data.replace(size, (1).to_bytes(4, "little")))
    refused("expected", fetching.unpack, tmp_path / "bomb.zip", tmp_path / "out", 10_000_000)
    assert sum(file.stat().st_size for file in (tmp_path / "out").iterdir()) <= 1


@pytest.mark.parametrize(
    "body, expected",
    [
        (b"<html>Sign in</html>", "expected a zip file in"),
        (pack([("models/secret/config.json", "{}")]), "expected one directory with a TensorFlow 1"),
        (
            pack([("a/checkpoint-1.index", ""), ("b/checkpoint-1.index", "")]),
            "(checkpoint-N.index) in {archive}, got a, b",
        ),
        (pack([("checkpoint-1.index", "no index")]), "{archive}/checkpoint-1"),
    ],
    ids=["page", "no checkpoint", "two", "damaged"],
)
def test_an_archive_of_something_else_leaves_nothing(server, tmp_path, body, expected):
    server.body = body
    expected = expected.replace("{archive}", str(tmp_path / "adv_trained.zip"))
    refused(expected, fetch, server, tmp_path)
    assert names_in(tmp_path) == []


def test_a_damaged_archive_is_refused(server, archive, tmp_path):
    middle = len(archive) // 2
    flipped = bytes([archive[middle] ^ 255])
    server.body = archive[:middle] + flipped + archive[middle + 1 :]
    refused("expected a zip file in", fetch, server, tmp_path)
    assert names_in(tmp_path) == []


# The scripts.


@pytest.mark.parametrize("challenge", [mnist_challenge, cifar10_challenge])
def test_the_originals_addresses(challenge):
    published = challenge.fetch_model.PUBLISHED
    assert list(published) == ["natural", "adv_trained", "secret"]
    for name, source in published.items():
        assert source.url.startswith("https://") and f"/{name}.zip" in source.url
        assert (source.sha256 is not None) == (name == "secret")
    assert len(bytes.fromhex(published["secret"].sha256)) == 32


def test_from_file_by_its_name_and_evaluation(archive, original, tmp_path):
    (tmp_path / "adv_trained.zip").write_bytes(archive)
    flags = ("--from_file=adv_trained.zip", "--models_dir=models")
    out = run(SCRIPT, *flags, cwd=tmp_path)
    assert out.endswith("SavedModel in models/adv_trained\n")
    assert is_whole(tmp_path / "models", original)
    assert (tmp_path / "adv_trained.zip").read_bytes() == archive
    out = run(
        ROOT / "mnist_challenge" / "eval.py",
        "--model_dir=models/adv_trained",
        "--num_eval_examples=10",
        "--num_steps=1",
        cwd=tmp_path,
    )
    assert "\nadversarial: " in out


def test_a_file_given_by_from_file_is_checked_too(archive, tmp_path):
    file, models_dir = tmp_path / "secret.zip", tmp_path / "models"
    file.write_bytes(archive)
    secret = mnist_challenge.fetch_model.PUBLISHED["secret"]
    for path, expected in (
        (file, "expected the published sha256 14eea09c"),
        (tmp_path / "none.zip", "--from_file: expected a zip file, got"),
    ):
        refused(expected, fetching.fetch, MNIST, "secret", secret, models_dir, path)
    assert names_in(models_dir) == [] and file.read_bytes() == archive


@pytest.mark.parametrize(
    "words, expected",
    [
        ((), "expected a model out of natural, adv_trained, secret, or --all; got none"),
        (("secret", "fast"), "natural, adv_trained, secret, or --all; got fast"),
        (("--from_file=mine.zip",), "natural, adv_trained, secret, or --all; got mine"),
        (("--all", "natural"), "expected --all or names of models, got both: natural"),
        (("--from_file=a.zip", "natural", "secret"), "--from_file: expected one model, got more"),
        (("--from_file=a.zip", "--all"), "--from_file: expected one model, got more"),
    ],
)
def test_wrong_names_of_models_are_refused(words, expected):
    flags = dict(word.removeprefix("--").split("=") for word in words if word.startswith("--f"))
    names = [word for word in words if not word.startswith("--")]
    arguments = (names, mnist_challenge.fetch_model.PUBLISHED, "--all" in words)
    refused(expected, fetch_model.chosen, *arguments, flags.get("from_file"))


def test_wrong_use_is_one_line_and_help_is_of_use(tmp_path):
    err = run(SCRIPT, "fast", "--models_dir=models", cwd=tmp_path, code=1)
    assert error_line(err).endswith("secret, or --all; got fast") and "Traceback" not in err
    assert names_in(tmp_path) == []
    process = start(SCRIPT, "--help", cwd=tmp_path)
    out, _ = process.communicate(timeout=60)
    assert "fetch_model.py natural|adv_trained|secret" in out
    assert all(flag in out for flag in ("--[no]all", "--from_file", "--models_dir"))


def test_ctrl_c_keeps_the_part_and_the_same_command_resumes(server, original, archive, tmp_path):
    # What fetch_model.py does, but for the address.
    program = (
        "from common import fetching; from common.scripts import fetch_model; "
        "from mnist_challenge.challenge import MNIST; "
        f"source = fetching.Source(url={server.url!r}, max_bytes=10_000_000); "
        "fetch_model.run_script(MNIST, {'adv_trained': source})"
    )
    models_dir = tmp_path / "models"
    command = ("-c", program, "adv_trained", f"--models_dir={models_dir}")
    part = models_dir / "adv_trained.zip.part"
    server.faults = ["stall"]
    process = start(*command, cwd=ROOT)
    deadline = time.monotonic() + 60
    while not (part.exists() and part.stat().st_size) and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "interrupted; the same command resumes there"
    assert "Traceback" not in err
    size = part.stat().st_size
    assert 0 < size < len(archive) and part.read_bytes() == archive[:size]
    assert names_in(models_dir) == [part.name]
    run(*command, cwd=ROOT)
    assert server.asked == [None, f"bytes={size}-"]
    assert is_whole(models_dir, original)
