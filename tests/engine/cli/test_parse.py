"""Command lines: order of sources, one line with the nearest match for each mistake, exit statuses of a launcher."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field

import pytest

from engine.base.errors import UserError
from engine.cli import parse as cli
from engine.cli.parse import build_settings, parse_settings
from engine.presets import presets
from engine.settings import STAGE_SETTINGS, flag


@dataclass(frozen=True)
class Where:
    _argument_group_name = "where"
    lang: str = flag("language")
    output: str | None = flag("folder", None)
    overwrite: bool = flag("replace it", False)
    files: list[str] = field(default_factory=list, metadata={"help": "some files"})


@dataclass(frozen=True)
class Step:
    _argument_group_name = "step"
    lr: float = flag("learning rate")
    warmup_steps: int = flag("warm-up")
    schedule: str = flag("shape", "constant", choices=["constant", "cosine"])

    def __post_init__(self):
        if self.lr <= 0:
            raise UserError(f"--lr is {self.lr}: give more than 0")


PRESETS = {"paper": {"lr": 0.5, "warmup_steps": 300}, "demo": {"lr": 0.1, "warmup_steps": 3, "schedule": "cosine"}}


def parse(*argv, **options):
    options = {"presets": PRESETS, "default_preset": lambda flags: "demo"} | options
    return parse_settings([Where, Step], argv, "job.py", "A job.", **options)


@pytest.fixture
def config(tmp_path):
    def write(text, name="job.yaml"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


def refused(message, *argv, **options):
    with pytest.raises(UserError, match=message) as error:
        parse(*argv, **options)
    assert "\n" not in str(error.value)


def test_preset_sets_required_fields_and_overrides_defaults():
    where, step = parse("--lang", "ne", "--preset", "paper")
    assert (where, step) == (Where("ne"), Step(0.5, 300, "constant"))
    assert parse("--lang", "ne")[1] == Step(0.1, 3, "cosine")


def test_default_preset_sees_flags_and_file(config):
    def choose(flags):
        return "paper" if any(f.split("=")[0] == "--output" for f in flags) else "demo"

    for argv in (["--output", "x"], ["--output=x"], ["--config", config("output: x")]):
        assert parse("--lang", "ne", *argv, default_preset=choose)[1].lr == 0.5
        assert parse("--lang", "ne", *argv, "--preset=demo", default_preset=choose)[1].lr == 0.1
    assert parse("--lang", "ne", default_preset=choose)[1].lr == 0.1
    assert parse("--lang", "ne", "--lr", "2", "--warmup-steps", "0", default_preset=None)[1] == Step(2.0, 0)


def test_later_sources_win(config):
    """The preset wins over defaults (schedule), the file over the preset (warmup_steps), flags over the file (lr)."""
    path = config("lr: 0.7\nwarmup-steps: 9\nlang: de\noverwrite: true\n")
    for argv in (["--config", path, "--lr", "0.9"], ["--lr=0.9", f"--config={path}"]):
        where, step = parse(*argv)
        assert step == Step(0.9, 9, "cosine")
        assert where == Where("de", overwrite=True)
    assert parse("--config", path, "--overwrite", "no")[0].overwrite is False


def test_given_names_fields_of_flags_and_file(config):
    parsed = parse("--lang", "ne", "--preset", "paper", "--warmup-steps=9", "--config", config("lr: 0.7"))
    assert parsed.given == {"lang", "warmup_steps", "lr"}
    assert parse("--lang=ne", "--warmup_steps", "9").given == {"lang", "warmup_steps"}


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("lang: de\nlr: 3e-4\noutput: null\nfiles: [a, b]", "x.yaml"),
        ('{"lang": "de", "lr": 3e-4, "output": null, "files": ["a", "b"]}', "x.json"),
    ],
)
def test_config_file_is_yaml_or_json(config, text, name):
    where, step = parse("--config", config(text, name))
    assert (where.lang, where.output, where.files, step.lr) == ("de", None, ["a", "b"], 3e-4)


def test_config_values_may_start_with_a_dash(config):
    assert parse("--config", config('lang: "-de"\noutput: "--a=b c"'))[0] == Where("-de", "--a=b c")
    refused("--lr is -1e-05: give more than 0", "--config", config("lang: de\nlr: -0.00001"))


def test_a_list_of_flags_replaces_the_files(config):
    """Values of one list flag add up, in one place: the command line or the file."""

    @dataclass(frozen=True)
    class Rewards:
        reward: list[str] | None = flag("rewards", None, action="extend")

    file = config("reward: [a, b]")
    for argv, found in (
        (["--config", file], ["a", "b"]),
        (["--config", file, "--reward", "c"], ["c"]),
        (["--reward=c", "--reward", "d", "e", "--config", file], ["c", "d", "e"]),
        (["--config", config("reward: a:0.5", "y.yaml")], ["a:0.5"]),
        ([], None),
    ):
        (rewards,) = parse_settings([Rewards], argv, "job.py", "A job.")
        assert rewards.reward == found


def test_dashes_equal_underscores():
    for spelling in ("--warmup-steps", "--warmup_steps"):
        assert parse("--lang", "ne", spelling, "7")[1].warmup_steps == 7
        assert parse("--lang", "ne", f"{spelling}=8")[1].warmup_steps == 8


@pytest.mark.parametrize("argument", ["--local_rank=0", "--local_rank=13", "--local-rank=1"])
def test_local_rank_flag_is_ignored(argument):
    assert parse(argument, "--lang", "ne") == parse("--lang", "ne")


@pytest.mark.parametrize(
    ("message", "argv"),
    [
        (r"unknown flag --warmup-step \(did you mean --warmup[-_]steps\?\)", ["--lang", "ne", "--warmup-step", "3"]),
        (r"unknown flag --langs \(did you mean --lang\?\)", ["--langs", "ne"]),  # even if --lang is missing, too
        (r"unknown flag --qqqqqq: --help", ["--lang", "ne", "--qqqqqq=3"]),
        (r"unknown flag --sched \(", ["--lang", "ne", "--sched", "cosine"]),  # abbreviations are not allowed
        (r"unexpected argument stray", ["--lang", "ne", "stray"]),
        (r"--preset papers is unknown \(did you mean paper\?\): one of paper, demo", ["--lang=ne", "--preset=papers"]),
        (r"required: --lang \(see --help\)", []),
        (r"--lr: invalid float value: 'fast'", ["--lang", "ne", "--lr", "fast"]),
        (r"--warmup[-_]steps: invalid int value: '1.5'", ["--lang", "ne", "--warmup-steps", "1.5"]),
        (r"--overwrite: .*'?maybe", ["--lang", "ne", "--overwrite", "maybe"]),
        (r"--schedule: invalid choice: 'cosin' .*cosine", ["--lang", "ne", "--schedule", "cosin"]),
        (r"--lr: expected one argument", ["--lang", "ne", "--lr"]),
        (r"--config: expected one argument", ["--lang", "ne", "--config"]),
        (r"--preset: expected one argument", ["--lang", "ne", "--preset", "--lr", "3"]),
        (r"--lr is -1.0: give more than 0", ["--lang", "ne", "--lr", "-1"]),
    ],
)
def test_command_line_errors_are_one_line(capsys, message, argv):
    refused(message, *argv)
    assert capsys.readouterr() == ("", "")


def test_without_presets_missing_settings_are_named():
    refused("required: --lang, --lr, --warmup", presets=None, default_preset=None)
    refused("unknown flag --preset", "--preset", "paper", presets=None, default_preset=None)


@pytest.mark.parametrize(
    ("message", "text", "name"),
    [
        (r"x.yaml: unknown setting 'warmup' \(did you mean warmup_steps\?\)", "lang: de\nwarmup: 3", "x.yaml"),
        (r"x.yaml: unknown setting 'preset'", "preset: paper", "x.yaml"),
        (r"x.yaml: setting 'lr' must be a plain value or a list of them, not a mapping", "lr: {a: 1}", "x.yaml"),
        (r"x.yaml must contain one mapping of setting to value, not list", "- lr", "x.yaml"),
        (r"x.yaml must contain one mapping of setting to value, not NoneType", "", "x.yaml"),
        (r"x.yaml is not valid YAML", "a: [", "x.yaml"),
        (r"x.json is not valid JSON", "lang: de", "x.json"),
        (r"--lr: invalid float value: 'fast'", "lang: de\nlr: fast", "x.yaml"),
    ],
)
def test_config_file_errors_are_one_line(config, message, text, name):
    refused(message, "--config", config(text, name))


def test_unreadable_config_file(tmp_path):
    refused("nowhere.yaml cannot be read", "--config", str(tmp_path / "nowhere.yaml"))
    (tmp_path / "binary.yaml").write_bytes(b"lr: \xff")
    refused("binary.yaml is not UTF-8", "--config", str(tmp_path / "binary.yaml"))


def test_help_has_groups_and_one_spelling_per_flag(capsys):
    with pytest.raises(SystemExit) as stop:
        parse("--help")
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: job.py [options]\n")
    for part in (
        "A job.",
        "where:",
        "step:",
        "--warmup-steps N",
        "--lr X",
        "{constant,cosine}",
        "--preset {paper,demo}",
    ):
        assert part in text
    assert "_" not in text


@pytest.mark.parametrize("preset", ["default", "okapi", "demo"])
@pytest.mark.parametrize("stage", STAGE_SETTINGS)
def test_presets_need_only_a_language(stage, preset):
    parsed = parse_settings(STAGE_SETTINGS[stage], ["--lang", "ne", "--preset", preset], "x", "x", presets(stage))
    built = build_settings(STAGE_SETTINGS[stage], presets(stage)[preset], {"lang": "ne"})
    assert built == parsed and built.given == parsed.given - {"preset"} == {"lang"}
    given = {name: value for part in parsed for name, value in vars(part).items()}
    assert given["lang"] == "ne"
    assert presets(stage)[preset].items() <= given.items()


def status_of(job):
    """Run a launcher around this job; return its exit status, or None if main returns."""
    try:
        cli.main(job)
    except SystemExit as stop:
        return stop.code
    return None


def raising(error):
    def job(argv):
        raise error

    return job


def test_launcher_exit_status_and_error_line(capsys, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    assert status_of(lambda argv: None) is None
    assert capsys.readouterr().err == ""
    assert status_of(raising(UserError("--lr is 0:\n give more"))) == 2
    assert capsys.readouterr().err == "error: --lr is 0: give more\n"
    assert status_of(raising(FileNotFoundError(2, "No such file", "a.json"))) == 2
    assert capsys.readouterr().err.startswith("error: No such file: a.json (check")
    assert status_of(raising(KeyboardInterrupt())) == 130
    for ours in (ValueError("a bug"), OSError("a bug")):
        with pytest.raises(type(ours), match="a bug"):
            status_of(raising(ours))


@pytest.mark.parametrize(("local_rank", "said"), [("0", "error: no\n"), ("1", "")])
def test_first_local_rank_prints_before_ranks_meet(capsys, monkeypatch, local_rank, said):
    monkeypatch.setenv("RANK", "8")
    monkeypatch.setenv("LOCAL_RANK", local_rank)
    assert status_of(raising(UserError("no"))) == 2
    assert capsys.readouterr() == ("", said)


def test_launcher_reads_the_command_line(monkeypatch):
    monkeypatch.setattr("sys.argv", ["job.py", "--lang", "ne"])
    seen = []
    cli.main(seen.append)
    assert seen == [["--lang", "ne"]]


def test_closed_output_is_not_an_error():
    """With `| head`, the program exits with the status of SIGPIPE and prints nothing."""
    program = (
        "from engine.cli.parse import main; main(lambda argv: [print('x' * 99, flush=True) for _ in range(99999)])"
    )
    run = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert run.stdout.readline() == b"x" * 99 + b"\n"
    run.stdout.close()
    assert (run.wait(60), run.stderr.read()) == (141, b"")


def test_other_broken_pipes_are_errors(monkeypatch, capsys):
    def job(argv):
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr("sys.argv", ["x"])
    with pytest.raises(SystemExit) as exit:
        cli.main(job)
    assert exit.value.code == 2 and capsys.readouterr().err.startswith("error: Broken pipe")
