"""The terminal chat: commands, memory and Ctrl-C, also through a pseudo-terminal."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from engine.base.errors import UserError
from engine.generation.sampling import Sampling
from launch.chat import Chat, ChatSettings, record_signal, talk
from launch.serve import ModelSettings, load
from tests.launch import small

ROOT = Path(__file__).resolve().parents[2]
ROOM = 128


@pytest.fixture(scope="module")
def loaded(folder):
    return load(ModelSettings(str(folder), template="plain", max_length=ROOM, slots=1))


@pytest.fixture
def chat(loaded):
    """Return a chat that records its lines and text."""
    chat = Chat(loaded.engine, loaded.tokenizer, loaded.dialogs, ChatSettings(max_new_tokens=12, seed=1), None, None)
    chat.lines, chat.text = [], []
    chat.say, chat.write = chat.lines.append, chat.text.append
    return chat


def test_answer_is_streamed_and_remembered(chat):
    chat.hear("Good morning")
    answer = "".join(chat.text)
    assert len([part for part in chat.text if part]) > 3
    assert chat.turns == [{"role": "user", "content": "Good morning"}, {"role": "assistant", "content": answer}]
    assert chat.lines == [" (cut at max-new-tokens)"]
    first = chat.dialogs.encode(chat.turns[:1])
    assert chat.dialogs.encode([*chat.turns, {"role": "user", "content": "x"}])[: len(first)] == first
    chat.hear("/reset")
    chat.text.clear()
    chat.hear("Good morning")
    assert "".join(chat.text) == answer, "equal seeds and dialogs"
    chat.hear("Good morning")
    assert len(chat.turns) == 4


def test_without_a_seed_answers_differ(chat):
    chat.hear("/seed")
    assert chat.settings.seed is None
    for _ in range(3):
        chat.hear("Good morning")
        chat.hear("/reset")
    text = "".join(chat.text)
    third = len(text) // 3
    assert text[:third] != text[third : 2 * third]


def test_long_dialogs_are_cut(chat):
    for _ in range(6):
        chat.hear("Good morning")
    cut = [line for line in chat.lines if "the oldest" in line]
    assert cut
    assert cut[0] == f"(the dialog is longer than {ROOM - 12} tokens: the oldest 2 messages are cut)"
    assert len(chat.turns) < 12
    assert chat.turns[0]["role"] == "user"
    with pytest.raises(UserError, match=r"a prompt of \d+ tokens, 116 fit: shorten it"):
        chat.hear("a" * 200)


def test_system_message_is_first_and_never_cut(chat, monkeypatch):
    seen = []
    monkeypatch.setattr(chat, "_generate", lambda request: (seen.append(request.prompt), ("Gut.", "stop"))[1])
    chat.hear("/system Be brief.")
    for _ in range(8):
        chat.hear("Good morning")
    begin = chat.dialogs.encode(
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Good morning"}]
    )
    assert all(prompt[: len(begin)] == begin for prompt in seen)
    assert all(len(prompt) <= ROOM - 12 for prompt in seen)
    assert not any(turn["role"] == "system" for turn in chat.turns)


def test_settings_change_by_commands(chat):
    for line in (
        "/temperature 0",
        "/top-k 5",
        "/top_p 0.5",
        "/min-p 0.1",
        "/repetition-penalty 1.2",
        "/max-new-tokens 3",
    ):
        chat.hear(line)
    assert chat.settings.sampling == Sampling(0.0, 5, 0.5, 0.1, 1.2)
    chat.hear("Good morning")
    assert chat.lines[-1] == " (cut at max-new-tokens)"
    chat.hear("/settings")
    assert "max-new-tokens 3" in chat.lines[-1]
    chat.hear("/help")
    for word in ("/reset", "/quit", "/temperature X", "Ctrl-C"):
        assert word in chat.lines[-1]
    before = chat.settings
    for line, words in (
        ("/temprature 1", "unknown command /temprature (did you mean temperature?): /help lists them"),
        ("/temperature hot", "/temperature needs a number, not 'hot'"),
        ("/top-k 1.5", "/top-k needs a number, not '1.5'"),
        ("/top-p 7", "--top-p is 7.0"),
        ("/max-new-tokens 0", "--max-new-tokens is 0: give 1 or more"),
    ):
        with pytest.raises(UserError) as error:
            chat.hear(line)
        assert words in str(error.value)
    assert chat.settings is before
    chat.hear("/max-new-tokens 500")
    with pytest.raises(UserError, match="max-new-tokens is 500, the context has 128: lower it with /max-new-tokens"):
        chat.hear("hi")


def test_ctrl_c_stops_the_answer_and_keeps_its_text(chat):
    chat.hear("/max-new-tokens 100")
    chat.hear("/temperature 0")

    def write(text):
        chat.text.append(text)
        if len(chat.text) == 5:
            os.kill(os.getpid(), signal.SIGINT)

    chat.write = write
    chat.hear("Good morning")
    assert chat.lines[-1] == " (stopped)"
    assert len(chat.text) < 10
    assert chat.turns[-1] == {"role": "assistant", "content": "".join(chat.text)}
    chat.hear("/max-new-tokens 5")
    chat.hear("Good morning")
    assert chat.lines[-1] == " (cut at max-new-tokens)"
    assert chat.engine.scheduler.pool.num_free == chat.engine.scheduler.pool.num_pages


def test_record_signal_restores_the_handler():
    before = signal.getsignal(signal.SIGINT)
    with record_signal(signal.SIGINT) as came:
        assert not came
        signal.raise_signal(signal.SIGINT)
        assert came
    assert signal.getsignal(signal.SIGINT) is before


def test_dialog_continues_after_errors_and_ends_with_input(chat):
    typed = iter(["/zzz", KeyboardInterrupt(), "", "   ", "/quit", "never read"])

    def read_line():
        line = next(typed)
        if isinstance(line, BaseException):
            raise line
        return line

    talk(chat, read_line)
    assert chat.lines == ["(unknown command /zzz: /help lists them)", "\n(/quit or Ctrl-D ends)"]
    assert next(typed) == "never read"

    def ended():
        raise EOFError

    chat.is_over = False
    talk(chat, ended)


@pytest.mark.slow
def test_piped_input_that_is_not_utf8(folder):
    lines = b"Good \xff\xfe morning\n/system \xff\n/system Be brief.\n/temperature 0.5\n/seed none\nGood morning\n"
    flags = ["--template", "plain", "--max-new-tokens", "4", "--max-length", str(ROOM)]
    run = subprocess.run(
        [sys.executable, "launch/chat.py", "--model", str(folder), *flags],
        input=lines, capture_output=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    said = run.stdout.decode("utf-8")
    assert (run.returncode, run.stderr) == (0, b"")
    assert (
        said.count("(the line contains bytes that are not UTF-8: set the terminal, or convert the file, to UTF-8)") == 2
    )
    answered = said.index("(cut at max-new-tokens)")
    for line in ("(system is 'Be brief.')", "(temperature is 0.5)", "(seed is None)"):
        assert said.index(line) < answered


def test_system_message_that_is_not_utf8():
    with pytest.raises(UserError, match="--system contains bytes that are not UTF-8"):
        ChatSettings(system="a\udcffb")


@pytest.fixture(scope="module")
def failing(folder, tmp_path_factory):
    """Return a model with the failing chat template."""
    failing = small.with_failing_chat_template(folder, tmp_path_factory.mktemp("failing") / "m")
    return load(ModelSettings(str(failing), max_length=ROOM, slots=1))


def test_failing_chat_template_is_one_line(failing):
    said: list[str] = []
    settings = ChatSettings(max_new_tokens=4, seed=1)
    chat = Chat(failing.engine, failing.tokenizer, failing.dialogs, settings, said.append, lambda _: None)
    typed = iter(["divide", "call", "lines", "nothing", "Good morning", "/quit"])
    talk(chat, lambda: next(typed))
    *refused, answered = said
    assert len(refused) == 4
    assert all("\n" not in line and line.startswith("(") for line in refused)
    assert "division" in refused[0]
    assert "two lines" in refused[2]
    assert answered == " (cut at max-new-tokens)"
    assert chat.turns[0]["content"] == "Good morning"


class Terminal:
    """A program with its own pseudo-terminal as controlling terminal, so that Ctrl-C reaches it."""

    def __init__(self, argv):
        self.master, self.slave = pty.openpty()  # keep the slave open, else reading fails
        # The first terminal that a new session opens becomes its controlling terminal.
        begin = (
            "import os, sys; terminal = os.open(sys.argv[1], os.O_RDWR); [os.dup2(terminal, n) for n in (0, 1, 2)]; "
            "os.execv(sys.argv[2], sys.argv[2:])"
        )
        name = os.ttyname(self.slave)
        self.process = subprocess.Popen(
            [sys.executable, "-c", begin, name, *argv],
            start_new_session=True,
            cwd=ROOT,
            env={**os.environ, "TERM": "dumb", "PYTHONPATH": str(ROOT)},
        )
        self.seen = b""

    def wait_for(self, words, seconds=60):
        """Return the output up to these words."""
        end = time.monotonic() + seconds
        while words.encode() not in self.seen:
            left = end - time.monotonic()
            assert left > 0 and select.select([self.master], [], [], left)[0], (
                words,
                self.seen.decode("utf-8", "replace"),
            )
            self.seen += os.read(self.master, 4096)
        before, _, self.seen = self.seen.partition(words.encode())
        return before.decode("utf-8", "replace").replace("\r\n", "\n")

    def type(self, text):
        os.write(self.master, text.encode())

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self.master)
        os.close(self.slave)


def test_in_a_terminal(folder):
    flags = ["--template", "plain", "--temperature", "0", "--max-new-tokens", "20"]
    terminal = Terminal([sys.executable, "launch/chat.py", "--model", str(folder), *flags])
    try:
        head = terminal.wait_for("\n> ")
        assert "template  plain" in head
        assert "2 layers of 16" in head
        terminal.type("शुभ प्रभात\n")
        answer = terminal.wait_for("\n> ")
        assert "शुभ प्रभात" in answer, "what is typed is shown"
        terminal.type("/reset\n")
        assert "(the dialog starts again)" in terminal.wait_for("\n> ")
        terminal.type("शुभ प्रभात\n")
        assert terminal.wait_for("\n> ") == answer
        terminal.type("/max-new-tokens 1900\n")
        terminal.wait_for("\n> ")
        terminal.type("hello\n")
        terminal.wait_for("hello")
        terminal.wait_for("\n")
        time.sleep(0.3)
        terminal.type("\x03")
        assert "(stopped)" in terminal.wait_for("\n> ", 10)
        terminal.type("/oops\n")
        assert "unknown command /oops" in terminal.wait_for("\n> ")
        terminal.type("\x04")
        assert terminal.process.wait(20) == 0
    finally:
        terminal.close()
