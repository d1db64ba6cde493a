"""Names and texts that others wrote, on a terminal: they make no line of their own, and nothing that it obeys."""

from __future__ import annotations

import io
import json
import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sr_runner.checkpoint import DamagedError
from sr_runner.commands import evaluate, upscale
from sr_runner.commands.ckpt import main
from sr_runner.errors import RequestError, RunError, printable
from sr_runner.masking import MaskedStream, mask_logs
from sr_runner.models import EDSR
from sr_runner.weights import export

FORGED = "x\nok       edsr-x2-000000000000/a0001-0000/step-00000001  \r\x1b[2J\x07\x9b31m\u202egnp.exe\u2028"
OBEYED = "\x1b\x07\x9b\u202e\u2028"


@pytest.mark.parametrize("kind", [RequestError, RunError, DamagedError])
def test_a_message_stays_in_its_lines_whatever_it_quotes(kind: type[Exception]) -> None:
    assert str(kind("one", f"two {FORGED}")) == f"one\ntwo {printable(FORGED)}"
    assert printable(FORGED).isprintable() and printable("é 日本") == "é 日本"


def test_a_forged_manifest_makes_no_line_in_what_sr_ckpt_prints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "edsr-x2-3f9a12c40b1e" / "a0001-12ab" / "step-00000001"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(
        json.dumps({"format": FORGED, "step": 1, "files": {FORGED: {"bytes": 1, "sha256": FORGED}}, FORGED: FORGED})
    )
    (folder / FORGED.replace("/", "_")).write_text("")
    for command in ("verify", "ls"):
        main([command, f"checkpoint.root={tmp_path}"])
        said = capsys.readouterr()
        assert not any(character in said.out + said.err for character in OBEYED + "\r")
        assert not any(line.startswith("ok ") for line in (said.out + said.err).splitlines()), said


def test_images_with_forged_names_make_no_line_in_what_sr_eval_and_sr_upscale_print(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    folder, name = tmp_path / "b\nok", "a\nok\x1b[2J.png"
    folder.mkdir()
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(folder / name)
    weights = tmp_path / "edsr\nok.safetensors"
    export(EDSR(scale=2, num_filters=4, num_res_blocks=1), weights)
    caplog.set_level(logging.INFO)
    assert evaluate.main([str(weights), f"data={folder}", f"output={tmp_path}/table.md"]) == 0
    assert upscale.main([str(weights), str(folder), f"output={tmp_path}/large"]) == 0
    said = capsys.readouterr()
    lines = [*said.out.splitlines(), *said.err.splitlines(), *caplog.text.splitlines()]
    lines += (tmp_path / "table.md").read_text().splitlines()
    assert "\x1b" not in "".join(lines) and not any(line.startswith("ok") for line in lines), lines
    assert any(printable(name.removesuffix(".png")) in line for line in lines)


def test_a_stream_and_a_log_give_a_terminal_nothing_to_obey(caplog: pytest.LogCaptureFixture) -> None:
    written = io.StringIO()
    MaskedStream(written).write(f"12%\r{FORGED}\n")
    assert not any(character in written.getvalue() for character in OBEYED)
    assert written.getvalue().startswith("12%\r") and written.getvalue().endswith("\n")
    before = logging.getLogRecordFactory()
    mask_logs()
    try:
        logging.getLogger("sr_runner.any").warning("%s is damaged", FORGED)
    finally:
        logging.setLogRecordFactory(before)
    assert caplog.messages == [f"{printable(FORGED)} is damaged"]
