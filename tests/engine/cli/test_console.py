"""The console: columns stay under their names, and only the first rank speaks."""

from engine.cli.console import Console


def test_steps_that_grow_stay_in_their_column(capsys):
    console = Console()
    for step in (1, 25, 500):
        console.row({"step": f"{step}/500", "loss": f"{1 / step:.4f}"})
    lines = capsys.readouterr().out.splitlines()
    assert [line.index("/") for line in lines[1:]] == [3, 3, 3]
    assert len({len(line) for line in lines}) == 1
    assert lines[0].split() == ["step", "loss"]


def test_the_other_ranks_are_silent(capsys):
    console = Console(enabled=False)
    console.header("title", {"name": 1})
    console.row({"step": "1/2"})
    assert capsys.readouterr().out == ""
