"""docs/files.md: every file and its one sentence, room by room; `python -m tests.files_table` writes the page."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "files.md"
# The boxes of each room, folders and files at its root: each imports only from those before it (test_house.py).
ORDER = {
    "kernels": "common rotary passes bf16_passes cuda_passes coded_linear skinny_linear attention attention_decode "
    "sampling segment_scan linear_logprob",
    "engine": "base device distributed cli shared_rows batch packing models text generation settings presets "
    "init_model objectives run training reward_functions planning report serving",
    "datagen": "sources kits text tasks api self_instruct simulate run translation ranking annotation published "
    "statistics rouge_filter decontaminate embedded rule_prompts instruct translate benchmark rank import_records "
    "stats bench __main__",
    "evaluation": "data checks tasks protocols settings scoring answers results lint coverage report bench_peer bench "
    "__main__",
    "launch": "common sources lengths listening replay sample_rank init merge pretrain sft rankings reward dpo ppo "
    "sample score judge answers evaluate plan tokens extend convert serve annotate chat real bench gpu gpu_proof",
}


def sentence(path: Path) -> str:
    """The first sentence of a Python file's docstring or of a C++ file's first comment."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        text = ast.get_docstring(ast.parse(text)) or ""
        return " ".join(text.split("\n\n")[0].split())
    comment = []
    for line in text.splitlines():
        if not line.startswith("//") or line == "//":
            break
        comment.append(line.removeprefix("//").strip())
    return " ".join(comment)


def row(name: str, path: Path) -> str:
    """One line of a table."""
    return f"| `{name}` | {sentence(path).replace('|', chr(92) + '|')} |"


def page() -> str:
    """The whole document."""
    lines = [
        "# Every file, room by room",
        "",
        "The first sentence of each; `python -m tests.files_table` writes this page from the files themselves.",
        "A box imports only from the boxes before it.",
    ]
    head = ["", "| file | what it is |", "|---|---|"]
    for room, order in ORDER.items():
        folder = ROOT / room
        lines += ["", f"## {room}", "", sentence(folder / "__init__.py"), *head]
        for box in order.split():
            if (folder / f"{box}.py").is_file():
                lines.append(row(f"{box}.py", folder / f"{box}.py"))
                continue
            files = [*(folder / box).rglob("*.py"), *(folder / box).rglob("*.cpp"), *(folder / box).rglob("*.h")]
            names = {p.relative_to(folder).as_posix(): p for p in files}
            lines += [row(f"{box}/", names.pop(f"{box}/__init__.py"))]
            lines += [row(name, names[name]) for name in sorted(names)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"{PAGE.relative_to(ROOT)}: {page().count('| `')} files")
