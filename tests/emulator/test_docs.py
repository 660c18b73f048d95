"""The example of docs/emulator.md does what the page says."""

import pathlib
import re
import subprocess

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "emulator.md"


def test_the_example_says_what_the_page_says(tmp_path, monkeypatch, capsys):
    blocks = re.findall(r"```(\w+)\n(.*?)```", PAGE.read_text(), re.S)
    source, command, program, race, right, report = (text for _, text in blocks)
    monkeypatch.chdir(tmp_path)
    for fix, want in (("", race), ("    __syncthreads();\n", right)):
        lines = source.splitlines(keepends=True)
        pathlib.Path("reverse.cu").write_text("".join([*lines[:4], fix, *lines[4:]]))
        subprocess.run(command.split(), check=True)
        exec(compile(program.replace("    launch(", "    report = launch("), str(PAGE), "exec"), names := {})
        assert capsys.readouterr().out == want
    exec(compile(report, str(PAGE), "exec"), names)
    assert capsys.readouterr().out.startswith("reverse.cu 1 ")
