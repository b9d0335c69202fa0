"""Every example of the README runs as it stands there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer.main

from strop.cli import app
from strop.recipe.config import load_recipe
from strop.tasks import task, validate

README = (Path(__file__).parent.parent / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_recipe_loads(tmp_path):
    [text] = blocks("yaml")
    (tmp_path / "my-run.yaml").write_text(text)
    assert list(load_recipe(tmp_path / "my-run.yaml", ["rl.steps=60"]).stages) == ["sft", "rl"]


def test_the_verifier_is_sound_and_short(tmp_path, monkeypatch):
    verifier = next(block for block in blocks("python") if "class Parity" in block)
    (tmp_path / "parity.py").write_text(verifier)
    monkeypatch.chdir(tmp_path)
    parity = task("parity.py:Parity")
    assert validate(parity) == []
    assert load_recipe("quickstart", ["rl.task=parity.py:Parity"]).stages["rl"].task == "parity.py:Parity"
    body = [line for line in verifier[verifier.index("class") :].splitlines() if line.strip()]
    assert len(body) <= 12


@pytest.mark.slow
def test_the_python_example_runs(capsys):
    example = next(block for block in blocks("python") if "import strop" in block)
    exec(example, {})
    printed = capsys.readouterr().out
    assert "greedy strict" in printed and "pass@2 flexible" in printed


def test_the_command_lines_parse():
    """Each `strop …` in the README is a known command with known options."""
    root = typer.main.get_command(app)
    lines = re.findall(r"(?:^ {4}|`)(strop [^`\n]+)", README, re.MULTILINE)
    assert len(lines) >= 8
    for line in lines:
        words = shlex.split(line, comments=True)[1:]
        command = root
        while words and getattr(command, "commands", None):
            command = command.commands[words.pop(0)]
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known, line
