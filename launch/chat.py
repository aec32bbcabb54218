"""Talk to a model in the terminal: `python launch/chat.py --model DIR`."""

from __future__ import annotations

import secrets
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

if __name__ == "__main__":  # run as a script: put the repository root on the path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.base.errors import UserError
from engine.base.nearest import nearest
from engine.cli.console import Console
from engine.cli.parse import main, parse_settings
from engine.generation.sampling import Sampling
from engine.serving.dialog import DialogEncoder, Turn, cut_to_fit
from engine.serving.live import BROKEN, LENGTH, STOP, LiveEngine, LiveRequest
from engine.serving.text_stream import TextStream
from engine.settings import check_at_least, flag
from launch.serve import Loaded, ModelSettings, load

PROMPT = "> "


@dataclass(frozen=True)
class OneSlot(ModelSettings):
    """The model to talk to."""

    slots: int = flag("responses generated at once", 1)


@dataclass(frozen=True)
class ChatSettings:
    """How the model answers. Each setting can be changed during the dialog."""

    _argument_group_name = "chat"
    temperature: float = flag("sampling temperature; 0 always takes the likeliest token", 0.7)
    top_k: int = flag("sample among the k likeliest tokens; 0 for all", 0)
    top_p: float = flag("sample among the likeliest tokens whose probabilities add up to this", 0.95)
    min_p: float = flag("sample among tokens with at least this fraction of the highest probability", 0.0)
    repetition_penalty: float = flag("weaken tokens already in the dialog; 1 for none", 1.0)
    max_new_tokens: int = flag("longest answer in tokens", 256)
    seed: int | None = flag("equal seeds and dialogs give equal answers (default: a new seed for each answer)", None)
    system: str = flag("system message before the first question", "")

    def __post_init__(self) -> None:
        check_at_least(1, self, "max_new_tokens")
        check_text(self.system, "--system")
        self.sampling  # noqa: B018  raises for a bad one

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.temperature, self.top_k, self.top_p, self.min_p, self.repetition_penalty)


@dataclass
class Chat:
    """A dialog with a model: its settings and its turns so far."""

    engine: LiveEngine
    tokenizer: Any
    dialogs: DialogEncoder
    settings: ChatSettings
    say: Callable[[str], None]  # prints a line
    write: Callable[[str], None]  # prints text as it is generated
    turns: list[Turn] = field(default_factory=list)
    is_over: bool = False

    def hear(self, line: str) -> None:
        """Run a command or answer a message. UserError for a line that is neither."""
        check_text(line, "the line")
        line = line.strip()
        if line.startswith("/"):
            self._command(line)
        elif line:
            self._answer(line)

    def _command(self, line: str) -> None:
        word, _, value = line[1:].partition(" ")
        name, settable = word.replace("-", "_"), {f.name: f for f in fields(self.settings)}
        if word in ("quit", "exit"):
            self.is_over = True
        elif word == "help":
            self.say(help_text())
        elif word == "reset":
            self.turns = []
            self.say("(the dialog starts again)")
        elif word == "settings":
            self.say("\n".join(f"  {f.replace('_', '-')} {getattr(self.settings, f)!r}" for f in settable))
        elif name in settable:
            self.settings = replace(self.settings, **{name: read_value(self.settings, name, value.strip())})
            self.say(f"({word} is {getattr(self.settings, name)!r})")
        else:
            known = ["help", "reset", "settings", "quit", *(f.replace("_", "-") for f in settable)]
            raise UserError(f"unknown command /{word}{nearest(word, known)}: /help lists them")

    def _answer(self, text: str) -> None:
        """Print the answer as it is generated. Ctrl-C stops it; the dialog keeps the part generated so far."""
        system = [{"role": "system", "content": self.settings.system}] if self.settings.system else []
        asked = [*system, *self.turns, {"role": "user", "content": text}]
        room = self.engine.max_length - self.settings.max_new_tokens
        if room < 1:
            raise UserError(
                f"max-new-tokens is {self.settings.max_new_tokens}, the context has {self.engine.max_length}: "
                "lower it with /max-new-tokens"
            )
        prompt, kept = cut_to_fit(self.dialogs, asked, room)
        if len(kept) < len(asked):
            self.say(f"(the dialog is longer than {room} tokens: the oldest {len(asked) - len(kept)} messages are cut)")
        seed = secrets.randbits(63) if self.settings.seed is None else self.settings.seed
        request = LiveRequest(prompt, seed, 0, self.settings.max_new_tokens, sampling=self.settings.sampling)
        answer, end = self._generate(request)
        if end == BROKEN:
            self.say("")
            raise UserError("the model's probabilities are NaN or infinite: its weights are damaged")
        note = {STOP: "", LENGTH: "(cut at max-new-tokens)"}.get(end or "", "(stopped)")
        self.say(f" {note}" if note else "")
        self.turns = [*(turn for turn in kept if turn["role"] != "system"), {"role": "assistant", "content": answer}]

    def _generate(self, request: LiveRequest) -> tuple[str, str | None]:
        """Print the answer as it is generated; return its text and how it ended, None if the user stopped it."""
        stream, parts, end = TextStream(self.tokenizer), [], None
        (index,) = self.engine.add([request])
        with record_signal(signal.SIGINT) as stop:
            while end is None and not stop:
                for event in self.engine.advance():
                    end = event.end
                    parts.append("" if end in (STOP, BROKEN) else stream.feed(event.token))
                    self.write(parts[-1])
        self.engine.cancel(index)
        parts.append(stream.finish())
        self.write(parts[-1])
        return "".join(parts), end


@contextmanager
def record_signal(number: int) -> Iterator[list[int]]:
    """Append a signal to the yielded list instead of acting on it, so that no step is interrupted."""
    came: list[int] = []
    before = signal.signal(number, lambda *_: came.append(number))
    try:
        yield came
    finally:
        signal.signal(number, before)


def read_value(settings: ChatSettings, name: str, text: str) -> Any:
    """Parse the new value of a setting. UserError unless it has the type of the setting."""
    kind = get_type_hints(type(settings))[name]  # not field.type: a string, which parsing flags replaces by a class
    if kind is str:
        return text
    if text in ("", "none") and type(None) in get_args(kind):
        return None
    try:
        return float(text) if kind is float else int(text)
    except ValueError as error:
        raise UserError(f"/{name.replace('_', '-')} needs a number, not {text!r}") from error


def help_text() -> str:
    """Return the list of commands with their help."""
    lines = [("/reset", "forget the dialog"), ("/settings", "show all settings"), ("/quit", "end, as Ctrl-D does")]
    lines += [(f"/{f.name.replace('_', '-')} X", f.metadata["help"]) for f in fields(ChatSettings)]
    return "\n".join(f"  {command:<22}{what}" for command, what in lines) + "\n  Ctrl-C stops an answer"


def check_text(text: str, what: str) -> None:
    """Raise UserError for bytes that are not UTF-8. Python reads them as lone surrogates, which tokenizers reject."""
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise UserError(f"{what} contains bytes that are not UTF-8: set the terminal, or convert the file, to UTF-8")


def talk(chat: Chat, read_line: Callable[[], str]) -> None:
    """Read lines until /quit or the end of input. Print a UserError and continue."""
    while not chat.is_over:
        try:
            line = read_line()
        except EOFError:
            return
        except KeyboardInterrupt:
            chat.say("\n(/quit or Ctrl-D ends)")
            continue
        try:
            chat.hear(line)
        except UserError as error:
            chat.say(f"({' '.join(str(error).split())})")


def job(argv: Sequence[str]) -> None:
    """Load the model and talk."""
    model, settings = parsed = parse_settings((OneSlot, ChatSettings), argv, "launch/chat.py", "Talk to a model.")
    loaded: Loaded = load(model)
    if (most := loaded.engine.max_length // 2) < settings.max_new_tokens and "max_new_tokens" not in parsed.given:
        settings = replace(settings, max_new_tokens=max(1, most))  # else no question would fit
    console = Console()
    console.header("Chat", {
        "model": loaded.about,
        "template": loaded.template,
        "room": f"{loaded.room}, answers of up to {settings.max_new_tokens}",
        "commands": "/help lists them, Ctrl-C stops an answer, Ctrl-D ends",
    })  # fmt: skip
    sys.stdin.reconfigure(errors="surrogateescape")  # `hear` reports bytes that are not UTF-8
    sys.stdout.reconfigure(errors="replace")  # a terminal may know fewer characters than the model
    if sys.stdin.isatty():
        import readline  # noqa: F401  gives `input` arrow keys and a history

    def write(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    chat = Chat(loaded.engine, loaded.tokenizer, loaded.dialogs, settings, print, write)
    talk(chat, lambda: input(PROMPT if sys.stdin.isatty() else ""))


if __name__ == "__main__":
    main(job)
