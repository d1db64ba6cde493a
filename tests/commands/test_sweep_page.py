"""`sweep.html`: which job it calls best, what it keeps out, and what a browser makes of it."""

from __future__ import annotations

import base64
import html
import io
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sr_runner.commands import sweep_page
from sr_runner.commands.sweep_page import JobRow, SweepRows, page
from sr_runner.errors import printable
from sr_runner.evaluation.strip import picture_strip

FORGED = "</script><script>alert(1)</script><!--<img src=x onerror=alert(1)>\u2028\u202e\udc80\n"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def row(model: str, seed: int, psnr: float | None, status: str = "finished", **more: Any) -> JobRow:
    values = {"model": model, "optimizer.lr": "0.003", "seed": str(seed)}
    gain = None if psnr is None else psnr - 25.0
    fields = {
        "seconds": 75.0,
        "run": f"{model}-x2-d599204d48d5/a0001-1ba26a4b",
        "error": "",
        "curve": [],
        "pictures": {},
    }
    return JobRow(f"{model} seed={seed}", values, status, psnr, gain, **(fields | more))


def sweep(*jobs: JobRow, name: str = "20261130-3f9a12c4") -> SweepRows:
    return SweepRows(name, "sr-run -m model=edsr,wdsr_b seed=1,2", ["model", "optimizer.lr", "seed"], list(jobs))


JOBS = (
    row("wdsr_b", 2, None, "failed", error="the loss is nan"),
    row("wdsr_b", 1, 27.1, curve=[(10, 26.0), (20, 27.1)]),
    row("edsr", 2, 27.3),
    row("srresnet", 1, 27.9, "stopped"),
    row("edsr", 1, 27.5, curve=[(20, 27.5), (10, float("nan")), (5, 25.0)]),
    row("srresnet", 2, None, "left", run="", seconds=None),
)


def data_of(text: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    read: dict[str, Any] = json.loads(found[1])
    return read


def decoded(url: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/webp;base64,")))))


def test_the_best_is_a_finished_job_and_the_sentence_counts_the_others() -> None:
    data = data_of(page(sweep(*JOBS)))
    ended = "3 of 6 jobs finished, 1 failed, 1 stopped, 1 left"
    assert "".join(data["headline"]) == f"Best: edsr seed=1, 27.50 dB (+2.50 dB over bicubic), {ended}"
    assert [job["psnr"] for job in data["jobs"]] == [27.5, 27.3, 27.1, 27.9, None, None]
    assert data["best"] and data["jobs"][0]["curve"] == [[5, 25.0], [20, 27.5]]


def test_seeds_are_averaged_only_where_they_repeat() -> None:
    [edsr, wdsr] = data_of(page(sweep(*JOBS)))["seeds"]
    assert edsr["values"] == ["edsr", "0.003"] and edsr["count"] == 2
    assert edsr["mean"] == pytest.approx(27.4) and edsr["deviation"] == pytest.approx(0.1 * 2**0.5)
    assert wdsr["deviation"] is None
    assert data_of(page(sweep(JOBS[1], JOBS[4])))["seeds"] == []


@pytest.mark.parametrize("psnr", [None, float("nan"), float("inf")])
def test_without_a_psnr_nothing_is_called_best(psnr: float | None) -> None:
    data = data_of(page(sweep(row("edsr", 1, psnr), JOBS[3])))
    assert not data["best"]
    assert "".join(data["headline"]) == "No job has finished with a PSNR: 1 of 2 jobs finished, 1 stopped"
    assert data_of(page(SweepRows("", "", [], [])))["jobs"] == []


def test_a_long_curve_keeps_its_last_point() -> None:
    [job] = data_of(page(sweep(row("edsr", 1, 27.0, curve=[(step, step / 1e4) for step in range(9999)]))))["jobs"]
    assert len(job["curve"]) <= 400 and job["curve"][-1] == [9998, 1.0]


def test_no_text_of_a_job_ends_the_script_element_that_it_stands_in() -> None:
    forged = JobRow(
        FORGED, {FORGED: FORGED}, "failed", None, None, None, FORGED, FORGED, [], {FORGED: Path("/nowhere")}
    )
    text = page(SweepRows(FORGED, FORGED, [FORGED], [forged]))
    assert text.lower().count("<script") == text.lower().count("</script") == 2 and "<img" not in text
    data = data_of(text)
    assert (
        data["name"] == data["jobs"][0]["error"] == data["keys"][0] == data["jobs"][0]["values"][0] == printable(FORGED)
    )
    assert data["unreadable"] == 1


def test_a_page_asks_for_nothing_outside_it() -> None:
    text = page(sweep(*JOBS))
    assert "default-src 'none'" in text
    assert set(re.findall(r"https?://[^\"]*", text)) == {"http://www.w3.org/1999/xhtml", "http://www.w3.org/2000/svg"}


def test_the_panels_of_a_strip_come_out_to_the_bit(tmp_path: Path) -> None:
    hr = np.random.default_rng(0).integers(0, 256, (120, 140, 3), np.uint8)
    lr, sr = hr[::2, ::2], 255 - hr
    picture_strip(lr, sr, hr, scale=2).save(tmp_path / "strip.png")
    [image] = data_of(page(sweep(row("edsr", 1, 27.0, pictures={"a.png": tmp_path / "strip.png"}))))["pictures"]
    shown, original = decoded(image["jobs"]["0"]), decoded(image["references"]["HR"])
    assert shown.shape == (96, 96, 3) and np.array_equal(shown, 255 - original)
    assert any(
        np.array_equal(original, hr[top : top + 96, left : left + 96]) for top in range(25) for left in range(45)
    )


def test_other_pictures_are_made_smaller_and_bad_ones_are_counted(tmp_path: Path) -> None:
    Image.new("RGB", (700, 512), "red").save(tmp_path / "sr.png")
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n damaged")
    (tmp_path / "link.png").symlink_to(tmp_path / "sr.png")
    pictures = {"a": tmp_path / "sr.png", "b": tmp_path / "bad.png", "c": tmp_path / "link.png", "d": tmp_path / "none"}
    data = data_of(page(sweep(row("edsr", 1, 27.0, pictures=pictures))))
    assert data["unreadable"] == 3 and data["left_out"] == 0
    [image] = data["pictures"]
    assert decoded(image["jobs"]["0"]).shape == (256, 350, 3) and image["references"] == {}


def test_pictures_beyond_the_size_of_the_page_are_left_out_those_of_the_worst_jobs_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    jobs = [row("edsr", seed, 27.0 - seed, pictures=dict.fromkeys("ab", tmp_path / "a.png")) for seed in range(4)]
    whole = len(page(sweep(*jobs)))
    monkeypatch.setattr(sweep_page, "_PAGE", whole * 2 // 3)
    text = page(sweep(*jobs))
    data = data_of(text)
    assert len(text) <= whole * 2 // 3 and data["left_out"] > 0
    held = [list(image["jobs"]) for image in data["pictures"]]
    assert held[0] == ["0", "1", "2", "3"] or len(held) == 1
    assert sum(map(len, held)) + data["left_out"] == 8


def in_browser(text: str, probe: str, folder: Path) -> Any:
    """What `probe`, an expression of JavaScript, is once the page is drawn. Fails where the page has an error."""
    if CHROMIUM is None:
        pytest.skip("there is no Chromium here")
    asked = f"<script>document.documentElement.replaceChildren(JSON.stringify({probe}))</script>"
    (folder / "sweep.html").write_text(text + asked, encoding="utf-8")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}/profile"]
    said = subprocess.run(
        [*command, "--enable-logging=stderr", "--dump-dom", f"file://{folder}/sweep.html"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert "CONSOLE" not in said.stderr, said.stderr
    return json.loads(html.unescape(re.sub(r"<[^>]*>", "", said.stdout)))


ROWS = "[...document.querySelectorAll('#jobs tbody tr')].map(row => [...row.children].map(cell => cell.textContent))"


def test_a_browser_shows_the_rows_best_first_and_sorts_them_by_a_click(tmp_path: Path) -> None:
    click = "document.querySelectorAll('#jobs th button')[4].click()"
    probe = f"[document.querySelector('h1').textContent, {ROWS}, {click}, {ROWS}, {click}, {ROWS}]"
    sentence, first, _, falling, _, rising = in_browser(page(sweep(*JOBS)), probe, tmp_path)
    assert sentence.startswith("Best: edsr seed=1, 27.50 dB (+2.50 dB over bicubic), 3 of 6 jobs finished")
    assert first[0] == [
        "1", "edsr", "0.003", "1", "27.50", "+2.50", "finished", "1 min 15 s", "edsr-x2-d599204d48d5/a0001-1ba26a4b"
    ]  # fmt: skip
    assert [cells[0] for cells in first] == ["1", "2", "3", "4", "5", "6"]
    assert first[4][6] == "failedthe loss is nan" and first[5][7:] == ["–", "–"]
    assert [cells[4] for cells in falling] == ["27.90", "27.50", "27.30", "27.10", "–", "–"]
    assert [cells[4] for cells in rising] == ["27.10", "27.30", "27.50", "27.90", "–", "–"]


def test_a_browser_shows_a_job_wherever_it_belongs(tmp_path: Path) -> None:
    Image.new("RGB", (40, 30), "red").save(tmp_path / "a.png")
    jobs = [row("edsr", 1, 27.5, curve=[(1, 27.5)], pictures={"a.png": tmp_path / "a.png"}), *JOBS[:3]]
    count = "(where) => document.querySelectorAll(where).length"
    probe = f"""(() => {{
        const count = {count};
        document.querySelector('#parallel .hit:last-child').dispatchEvent(new PointerEvent('pointerenter'));
        return [count('#keys svg'), count('#keys .dot'), count('#parallel .path'), count('#curves .path'),
          count('#pictures img'), count('.hot'), count('tr.best.hot'), document.getElementById('tip').textContent];
    }})()"""
    seen = in_browser(page(sweep(*jobs)), probe, tmp_path)
    assert seen == [3, 9, 4, 2, 1, 8, 1, "edsr seed=127.50 dB (+2.50 dB)"]


@pytest.mark.parametrize("jobs", [(), (JOBS[0],), (JOBS[2],)], ids=["none", "failed", "one"])
def test_a_browser_draws_what_there_is_and_says_what_there_is_not(jobs: tuple[JobRow, ...], tmp_path: Path) -> None:
    probe = "['curves', 'pictures'].map(id => document.getElementById(id).lastChild.textContent)"
    assert in_browser(page(sweep(*jobs)), probe, tmp_path) == ["no curves recorded", "no pictures recorded"]


def test_a_browser_takes_forged_names_for_text(tmp_path: Path) -> None:
    Image.new("RGB", (40, 30), "red").save(tmp_path / "a.png")
    pictures = {FORGED: tmp_path / "a.png"}
    forged = JobRow(FORGED, {FORGED: FORGED}, FORGED, 27.0, None, None, FORGED, FORGED, [(1, 27.0)], pictures)
    count = "document.querySelectorAll('script').length, document.querySelectorAll('img:not([src^=\"data:\"])').length"
    probe = f"[{count}, document.querySelector('option').textContent, {ROWS}]"
    scripts, foreign, option, rows = in_browser(page(SweepRows(FORGED, FORGED, [FORGED], [forged])), probe, tmp_path)
    assert (scripts, foreign) == (3, 0)  # the page's two and the probe
    assert option == rows[0][1] == printable(FORGED)
