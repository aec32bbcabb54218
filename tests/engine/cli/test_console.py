"""The console aligns columns with their names and prints on the first rank only."""

from engine.cli.console import Console


def test_growing_steps_stay_aligned(capsys):
    console = Console()
    for step in (1, 25, 500):
        console.row({"step": f"{step}/500", "loss": f"{1 / step:.4f}"})
    lines = capsys.readouterr().out.splitlines()
    assert [line.index("/") for line in lines[1:]] == [3, 3, 3]
    assert len({len(line) for line in lines}) == 1
    assert lines[0].split() == ["step", "loss"]


def test_other_ranks_print_nothing(capsys):
    console = Console(enabled=False)
    console.header("title", {"name": 1})
    console.row({"step": "1/2"})
    assert capsys.readouterr().out == ""
