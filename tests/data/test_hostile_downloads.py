"""Archives and servers that are not to be trusted. The archives have the size and SHA-256 that they should have: what
they hold is all that is wrong with them."""

from __future__ import annotations

import base64
import io
import os
import random
import re
import resource
import stat
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from div2k_server import Handler, Server, official, photograph, prepared, serving, zipped
from support import TINY, SrRun

from sr_runner.data import download as downloads
from sr_runner.data.archives import unpack_images
from sr_runner.errors import RequestError, RunError
from sr_runner.files import LinkError

HR = "DIV2K_train_HR"


def with_member(
    name: str, content: bytes = b"x", mode: int = 0, method: int = zipfile.ZIP_STORED, into: bytes = b""
) -> bytes:
    """The official archive (or `into`) with one entry more."""
    info = zipfile.ZipInfo(name)
    info.external_attr, info.compress_type = mode << 16, method
    buffer = io.BytesIO(into or official(HR))
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr(info, content)
    return buffer.getvalue()


def patched(archive: bytes, entry: str, offset: int, value: bytes) -> bytes:
    """The archive with other bytes at `offset` of what its directory says of `entry`."""
    directory = archive.rindex(entry.encode()) - 46
    assert archive[directory : directory + 4] == b"PK\x01\x02"
    return archive[: directory + offset] + value + archive[directory + offset + len(value) :]


def overlapping() -> bytes:
    """Forty entries of 1 MB each that are all the same bytes of the file."""
    kernel = with_member(f"{HR}/1000.png", bytes(1 << 20), method=zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(io.BytesIO(kernel)) as archive:
        start = archive.start_dir
        (one,) = [member for member in archive.infolist() if member.filename.endswith("1000.png")]
        archive.filelist += [zipfile.ZipInfo(f"{HR}/{number}.png") for number in range(1001, 1040)]
        for other in archive.filelist[-39:]:
            for name in ("compress_type", "CRC", "compress_size", "file_size", "header_offset"):
                setattr(other, name, getattr(one, name))
        buffer = archive.fp = io.BytesIO(kernel[:start])  # type: ignore[assignment]
        buffer.seek(start)
        archive._write_end_record()  # type: ignore[attr-defined]
    return buffer.getvalue()


def damaged_name() -> bytes:
    """An entry whose name is said to be UTF-8, and is not."""
    broken = with_member(f"{HR}/\N{LATIN SMALL LETTER E WITH ACUTE}.png")
    return broken.replace("\N{LATIN SMALL LETTER E WITH ACUTE}".encode(), b"\xff\xfe")


ARCHIVES: dict[str, tuple[Callable[[], bytes], str]] = {
    "a path upwards": (lambda: with_member("../../escaped.png"), r"'\.\./\.\./escaped\.png' points outside"),
    "an absolute path": (lambda: with_member("/tmp/escaped.png"), "'/tmp/escaped.png' points outside"),
    "a path out of the folder": (lambda: with_member(f"{HR}/../../escaped.png"), "points outside"),
    "a path of Windows upwards": (lambda: with_member(f"{HR}\\..\\escaped.png"), "points outside"),
    "a drive of Windows": (lambda: with_member("C:\\escaped.png"), r"'C:\\\\escaped\.png' points outside"),
    "a drive with slashes": (lambda: with_member("C:/escaped.png"), "'C:/escaped.png' points outside"),
    "a script": (lambda: with_member(f"{HR}/escaped.sh"), "does not belong"),
    "an archive": (lambda: with_member(f"{HR}/again.zip", official(HR)), "does not belong"),
    "a hidden file": (lambda: with_member(f"{HR}/.hidden.png"), "does not belong"),
    "one name twice": (lambda: with_member("elsewhere/0001.png"), "'elsewhere/0001.png' does not belong"),
    "a name that no file can have": (lambda: with_member(f"{HR}/{'9' * 300}.png"), "9.png' does not belong"),
    "a link": (lambda: with_member(f"{HR}/escaped.png", b"/etc", stat.S_IFLNK | 0o777), "is a link"),
    "a device": (lambda: with_member(f"{HR}/escaped.png", b"", stat.S_IFCHR | 0o666), "is a link or a device"),
    "no image": (lambda: with_member(f"{HR}/0004.png", b"x" * 500), "'DIV2K_train_HR/0004.png' is not an image"),
    "ten thousand entries": (
        lambda: zipped({f"{HR}/{number}.png": b"" for number in range(10_001)}), "10001 files, expected 10000 at most"
    ),
    "much of nothing": (
        lambda: with_member(f"{HR}/0004.png", bytes(30_000_000), method=zipfile.ZIP_DEFLATED),
        r"'DIV2K_train_HR/0004\.png' to 30000000; this looks like a zip bomb",
    ),
    "entries that overlap": (overlapping, "this looks like a zip bomb"),
    "a size that is a lie": (
        lambda: patched(with_member(f"{HR}/0004.png", b"x"), f"{HR}/0004.png", 24, struct.pack("<I", 4_000_000_000)),
        "this looks like a zip bomb",
    ),
    "a small size that is a lie": (
        lambda: patched(
            with_member(f"{HR}/0004.png", bytes(60_000_000), method=zipfile.ZIP_DEFLATED),
            f"{HR}/0004.png", 24, struct.pack("<I", 1000),
        ),
        "'DIV2K_train_HR/0004.png' is damaged",
    ),
    "a method that unpacks in one go": (
        lambda: patched(
            with_member(f"{HR}/0004.png", bytes(1 << 24), method=zipfile.ZIP_BZIP2),
            f"{HR}/0004.png", 24, struct.pack("<I", 1000),
        ),
        r"'DIV2K_train_HR/0004\.png' is compressed in a way that PNG files are not \(method 12\)",
    ),
    "a wrong checksum": (
        lambda: patched(official(HR), f"{HR}/0002.png", 16, b"\0\0\0\0"),
        "'DIV2K_train_HR/0002.png' is damaged .Bad CRC",
    ),
    "a password": (lambda: patched(official(HR), f"{HR}/0002.png", 8, b"\1"), "'DIV2K_train_HR/0002.png' is damaged"),
    "an end that is cut off": (lambda: official(HR)[:-30], "damaged archive"),
    "a beginning that is cut off": (lambda: official(HR)[900:], "damaged"),
    "a name that is none": (damaged_name, "damaged archive"),
    "a page of HTML": (lambda: b"<html>" + bytes(3000), "damaged archive"),
    "next to nothing": (lambda: b"PK", "damaged archive"),
}  # fmt: skip


@pytest.mark.parametrize("what", ARCHIVES)
def test_an_archive_with_anything_but_images_in_it_leaves_nothing_and_is_named_with_its_entry(
    what: str, server: Server, root: Path
) -> None:
    make, message = ARCHIVES[what]
    server.files[f"{HR}.zip"] = make()
    before = set(root.parent.parent.rglob("*"))
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(RunError, match=message) as caught:
        prepared(server, root)
    assert f"{HR}.zip" in str(caught.value) and "\n" not in str(caught.value)
    assert set(root.parent.parent.rglob("*")) - before == {root, root / ".lock"}
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - used < 200 << 10, "kB"
    server.files[f"{HR}.zip"] = official(HR)
    prepared(server, root)


def test_an_archive_without_the_images_that_are_wanted_is_named_with_the_first(server: Server, root: Path) -> None:
    server.files[f"{HR}.zip"] = zipped({f"{HR}/0009.png": photograph(9, 48, 72)})
    with pytest.raises(RunError, match=rf"data=div2k: {HR}\.zip does not hold 0001\.png"):
        prepared(server, root)


def test_folders_and_clutter_in_an_archive_are_left_out(server: Server, root: Path) -> None:
    archive = with_member(f"__MACOSX/{HR}/._0001.png")
    for name in (f"{HR}/", f"{HR}/.DS_Store"):
        archive = with_member(name, into=archive)
    server.files[f"{HR}.zip"] = archive
    prepared(server, root)
    assert sorted(path.name for path in (root / HR).iterdir()) == ["0001.png", "0002.png", "0003.png"]


@pytest.mark.slow
def test_thousands_of_damaged_archives_are_refused_in_a_sentence_or_unpacked_whole(tmp_path: Path) -> None:
    chance, kinds = random.Random(0), (official(HR), with_member(f"{HR}/0004.png", photograph(4, 8, 8), method=8))
    refused = 0
    for _ in range(6000):
        data = bytearray(chance.choice(kinds))
        for _ in range(chance.randint(1, 4)):
            place = chance.randrange(len(data) - 400 if chance.random() < 0.7 else 0, len(data))
            length = chance.randint(1, 30)
            data[place : place + chance.choice([0, 1, length])] = chance.randbytes(chance.choice([0, 1, length]))
        (tmp_path / "a.zip").write_bytes(data)
        try:
            unpack_images(tmp_path / "a.zip", tmp_path, "out")
        except RunError:
            refused += 1
        assert {path.name for path in tmp_path.iterdir()} <= {"a.zip", "out"}
    assert refused > 3000


# -- servers -----------------------------------------------------------------------------------------------------------


def redirected(*places: str) -> Callable[[Handler], bool]:
    """Each request is sent to the next of `places`, and to the last from then on."""
    left = list(places)
    return lambda request: request.say(
        302, ("Location", left.pop(0) if len(left) > 1 else left[0]), ("Content-Length", "0")
    )


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (redirected("/round/and/round"), "redirects more than 10 times"),
        (redirected(*(f"/{number}" for number in range(100))), "redirects more than 10 times"),
        (redirected("file:///etc/passwd"), r"redirects to 'file:///etc/passwd'; expected a place on the web"),
        (redirected("ftp://127.0.0.1/etc/passwd"), "redirects to 'ftp://127.0.0.1/etc/passwd'; expected"),
        (redirected("data:,x"), "redirects to 'data:,x'; expected"),
        (redirected("http://["), r"redirects to 'http://\[' \(Invalid IPv6 URL\)"),
        (redirected("http://127.0.0.1:port/"), "redirects to 'http://127.0.0.1:port/' .Port could not be cast"),
        (redirected("http://a..b/"), "'http://a..b/' is no address of the web"),
        (redirected("http://user:hunter2hunter2@127.0.0.1/"), r"redirects to 'http://\*\*\*\*\*@127.0.0.1/'; expected"),
        (lambda request: request.say(200, ("Content-Length", "abc")), "attempts in a row failed"),
        (lambda request: request.say(200, ("Content-Length", "9" * 5000)), "attempts in a row failed"),
        (lambda request: request.say(206, ("Content-Range", f"bytes 7-{'9' * 5000}/*")), "attempts in a row failed"),
        (lambda request: request.say(206, ("Content-Range", "bytes 7-8/9")), "the server has 9 bytes there"),
        (lambda request: request.say(204), "the connection ended early"),
        (lambda request: bool(request.wfile.write(b"\x1b[2Jnot HTTP\r\n\r\n")), r"\\x1b\[2J"),
        (lambda request: bool(request.wfile.write(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000)), "attempts in a row"),
    ],
)  # fmt: skip
def test_a_server_that_answers_anything_else_is_one_sentence_and_leaves_nothing(
    answer: Callable[[Handler], bool], message: str, server: Server, root: Path
) -> None:
    server.answer = answer
    with pytest.raises((RunError, RequestError), match=message) as caught:
        prepared(server, root)
    assert f"{HR}.zip" in str(caught.value).split("\n")[0] and "\x1b" not in str(caught.value)
    assert not [path for path in root.iterdir() if path.name != ".lock" and path.stat().st_size]


def test_a_redirection_with_a_body_without_end_is_not_read(server: Server, root: Path) -> None:
    sent: list[int] = []

    def endless(request: Handler) -> bool:
        if request.path.startswith("/moved/"):
            return False
        request.send_response(302)
        request.send_header("Location", f"/moved{request.path}")
        request.end_headers()
        try:
            while sum(sent) < 1 << 28:
                sent.append(request.wfile.write(bytes(1 << 20)))
        except OSError:
            pass
        return True

    server.answer = endless
    prepared(server, root)
    assert sum(sent) < 1 << 28


def test_a_server_without_ranges_that_breaks_off_here_and_there_is_not_asked_for_ever(
    server: Server, root: Path, pauses: list[float]
) -> None:
    server.ranges = False
    server.faults = [("hang up after", 1000 + 500 * (number % 2)) for number in range(1000)]
    with pytest.raises(RequestError, match=r"ended early \(5 attempts in a row failed\)"):
        prepared(server, root)
    assert pauses == [1, 2, 4, 8]


HEAD = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    ("first", "piece"),
    [
        pytest.param(b"", b"", id="nothing", marks=pytest.mark.slow),
        pytest.param(HEAD + b"\r\n", b"", id="no body"),
        pytest.param(HEAD + b"\r\n", b"P", id="body"),
        pytest.param(HEAD + b"X: ", b"x", id="headers"),
        pytest.param(HEAD[:10], b"x", id="status", marks=pytest.mark.slow),
        pytest.param(b"", b"HTTP/1.1 100 Continue\r\n\r\n", id="continue"),
        pytest.param(HEAD + b"Transfer-Encoding: chunked\r\n\r\n8;", b"x", id="chunks"),
        pytest.param(b"HTTP/1.1 302 Found\r\nLocation: /", b"x", id="redirection", marks=pytest.mark.slow),
    ],
)
def test_a_server_that_stalls_or_sends_a_byte_now_and_then_is_left_after_five_attempts(
    first: bytes, piece: bytes, server: Server, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads, "_TIMEOUT", 0.1)
    root.mkdir()
    (root / f"{HR}.zip.part").write_bytes(official(HR)[:500])

    def slow(request: Handler) -> bool:
        request.wfile.write(first)
        request.connection.settimeout(0.02)
        for _ in range(1000):
            try:
                if not request.connection.recv(1):
                    break
            except TimeoutError:
                request.wfile.write(piece)
        request.close_connection = True
        return True

    server.answer = slow
    with pytest.raises(RequestError, match=r"(timed out|only \d+ bytes came in 0 s) \(5 attempts in a row failed\)"):
        prepared(server, root)
    if b"\r\n\r\n" not in first:  # whole headers without a range begin the file anew
        assert (root / f"{HR}.zip.part").read_bytes() == official(HR)[:500]


def test_a_part_that_is_a_link_is_not_written_through(server: Server, root: Path, tmp_path: Path) -> None:
    root.mkdir()
    (tmp_path / "mine").write_bytes(b"my own")
    (root / f"{HR}.zip.part").symlink_to(tmp_path / "mine")
    with pytest.raises(LinkError, match=rf"{HR}\.zip\.part: expected a file, not a link"):
        prepared(server, root)
    assert (tmp_path / "mine").read_bytes() == b"my own" and (root / f"{HR}.zip.part").is_symlink()
    (root / f"{HR}.zip.part").unlink()
    os.mkfifo(root / f"{HR}.zip.part")
    with pytest.raises(LinkError, match="expected a file, not a link or a device"):
        prepared(server, root)


# -- credentials -------------------------------------------------------------------------------------------------------


def test_user_password_and_query_go_to_the_server_and_to_no_other(server: Server, root: Path) -> None:
    with serving() as other:
        server.answer = lambda request: request.say(302, ("Location", other.url + request.path[1:].partition("?")[0]))
        prepared(server, root, base_url=server.url.replace("://", "://me:S3%2FCRET@") + "?sig=S3CRET")
    (first, *_) = server.headers
    assert base64.b64decode(first["Authorization"].removeprefix("Basic ")) == b"me:S3/CRET"
    assert first["path"] == f"/{HR}.zip?sig=S3CRET"
    assert other.headers and not any("Authorization" in headers for headers in other.headers)


def on_the_command_line(server: Server) -> list[str]:
    """A run on the first images; the address with the secrets stands in a config."""
    table = server.table()
    facts = ", ".join(f"{name}: {list(table[name])}" for name in (HR, "DIV2K_train_LR_bicubic_X4")).replace("'", "")
    return [
        "--config-dir", "conf", *TINY, "+experiment=mirror", "scale=4", "data.train=1-2", "data.valid=3",
        "trainer.steps=2", f"+data.archives={{{facts}}}",
    ]  # fmt: skip


@pytest.mark.slow
def test_secrets_in_the_address_are_in_nothing_that_is_left_behind(
    server: Server, tmp_path: Path, sr_run: SrRun
) -> None:
    url = server.url.replace("://", "://me:S3CRET@") + "?sig=S3CRET"
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "conf" / "experiment" / "mirror.yaml").write_text(
        f"# @package _global_\ndefaults: [{{override /data: div2k}}]\ndata: {{base_url: '{url}'}}\n"
    )
    server.faults = [("hang up after", 1000)]
    done = sr_run(*on_the_command_line(server))
    server.files[f"{HR}.zip"] = with_member("../../escaped.png")
    words = [*on_the_command_line(server), "data.root=outputs/again"]
    refused = sr_run(*words, code=1)
    assert refused.stderr.strip().splitlines()[-1].startswith("sr-run: ") and "Traceback" not in refused.stderr
    server.files[f"{HR}.zip"] = bytes(len(server.files[f"{HR}.zip"]))
    wrong = sr_run(*words, code=1)
    assert "SHA-256" in wrong.stderr and f"127.0.0.1:{server.server_port}/" in wrong.stderr
    assert not list(tmp_path.rglob("escaped*"))
    assert not [each for each in (done, refused, wrong) if "S3CRET" in each.stdout + each.stderr]
    files = [path for path in (tmp_path / "outputs").rglob("*") if path.is_file()]
    assert any(path.name == "mlflow.db" for path in files)
    for path in files:
        assert b"S3CRET" not in path.read_bytes() and "S3CRET" not in path.name, path


@pytest.mark.parametrize(
    "url", ["http://me:S3CRET@host", "http://me:S3/CRET@host/", "http://host:x/?sig=S3CRET", "http://["]
)
def test_an_address_that_is_refused_is_quoted_without_its_secret(url: str, server: Server, root: Path) -> None:
    with pytest.raises(RequestError, match=r"data\.base_url=.*: expected a URL") as caught:
        prepared(server, root, base_url=url)
    assert not re.search("S3|CRET", str(caught.value))
