"""`sr-run --help`: a page that is made of the config tree and the settings, at once."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from support import environment, options_of

from sr_runner.commands.help import page
from sr_runner.commands.run import main
from sr_runner.config.settings import CheckpointSettings, RunSettings, TrainerSettings, config_dir


@pytest.fixture(scope="module")
def lines() -> list[str]:
    return page(config_dir()).splitlines()


def test_every_setting_is_there_with_its_default_and_an_explanation(lines: list[str]) -> None:
    for prefix, settings in (("", RunSettings), ("trainer.", TrainerSettings), ("checkpoint.", CheckpointSettings)):
        for field in fields(settings):
            (line,) = (line for line in lines if line.startswith(f"  {prefix}{field.name}="))
            assert len(line.split()) > 2 and "  " not in line.partition("=")[2].partition("  ")[2].strip(), line
    text = "\n".join(lines)
    assert (
        "  trainer.steps=300000 " in text and "  trainer.grad_clip=null " in text and "trainer.compile=false " in text
    )
    assert "  checkpoint.best_metric=valid/psnr " in text
    assert max(map(len, lines)) <= 120


def test_every_option_is_there_and_what_options_share_is_not(lines: list[str]) -> None:
    for group in ("model", "optimizer", "data", "experiment", "checkpoint"):
        start = next(number for number, line in enumerate(lines) if line.startswith(f"  {group}  ("))
        shown = [line.split()[0] for line in lines[start + 1 : start + 1 + len(options_of(group))]]
        assert shown == options_of(group)
    assert not any(line.strip().startswith("_") for line in lines)


def test_the_page_tells_what_a_run_without_a_recipe_is(lines: list[str]) -> None:
    assert any("experiment=quick: 800 steps" in line for line in lines)
    assert any(line.startswith("  experiment  (") and line.endswith("default quick)") for line in lines)


def test_help_imports_nothing_heavy() -> None:
    code = "import sys; from sr_runner.commands.run import main; main(['--help']); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True)
    assert not {"torch", "hydra", "omegaconf", "numpy", "mlflow", "yaml"} & set(done.stderr.split())


def test_printing_a_config_does_not_import_torch() -> None:
    code = (
        "import sys; from sr_runner.commands.run import main; main(['--cfg', 'job']); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, check=True)


def test_a_folder_of_configs_adds_its_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for group, name, text in (("model", "mine", "# A network of mine\n"), ("experiment", "night", "trainer: {}\n")):
        (tmp_path / group).mkdir()
        (tmp_path / group / f"{name}.yaml").write_text(text)
    for option in ([f"--config-dir={tmp_path}"], ["-cd", str(tmp_path)]):
        assert main([*option, "--help"]) == 0
        said = capsys.readouterr().out
        assert re.search(r"\n    mine +A network of mine \[--config-dir\]", said) and "\n    night " in said
    assert main(["--help"]) == 0 and "night" not in capsys.readouterr().out
