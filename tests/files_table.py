"""docs/files.md: every file and its one sentence, in reading order; `python -m tests.files_table` writes it anew."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "files.md"
# The order data flows in; what is not named here follows by name.
READING_ORDER = {
    "engine": """languages errors jsonl records prompts tokenizer eos encoding rankings batch packing models/attend
        models/bloom models/llama models/rotary models/length_limit models/fused models/names models/weight_files
        models/hf init_model modules trunk sampling random_address kv_cache cache_budget scheduler decode_rows
        generation exact_match experience scoring heldout advantages kl_controller losses sft reward ppo_checks ppo
        zero sharded checkpoint checkpoint_files distributed metrics seeds schedule export runs console settings
        presets cli plan
        memory_tracker""",
    "kernels": """linear_logprob/__init__ linear_logprob/reference attention/__init__ attention/reference
        attention_decode/__init__ attention_decode/reference segment_scan/__init__ segment_scan/reference""",
    "datagen": """kit_rules kits tasks wrong_answers splits embedded embedded_benchmarks chat client answers rate_limits
        pricing frames journal session runner command""",
    "evaluation": """items data tasks/__init__ protocols/__init__ protocols/draws protocols/encodings build requests
        prefix_tree scoring metrics manifest records results report""",
    "launch": "common lengths init sft reward ppo sample evaluate plan bench_rollout compare_ppo",
}  # fmt: skip


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


def page() -> str:
    """The whole document."""
    lines = [
        "# Every file, in reading order",
        "",
        "The first sentence of each; `python -m tests.files_table` writes this page from the files themselves.",
    ]
    for room, order in READING_ORDER.items():
        files = [*(ROOT / room).rglob("*.py"), *(ROOT / room).rglob("*.cpp"), *(ROOT / room).rglob("*.h")]
        names = {
            p.relative_to(ROOT / room).as_posix(): p
            for p in files
            if p.name != "__init__.py" or p.parent != ROOT / room
        }
        place = {name: i for i, name in enumerate(order.split())}
        ranked = sorted(names, key=lambda n: (place.get(n.removesuffix(".py"), len(place)), n))
        lines += ["", f"## {room}", "", sentence(ROOT / room / "__init__.py"), "", "| file | what it is |", "|---|---|"]
        lines += [f"| `{name}` | {sentence(names[name]).replace('|', chr(92) + '|')} |" for name in ranked]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"{PAGE.relative_to(ROOT)}: {page().count('| `')} files")
