"""`python -m datagen.kits [CODE ...]`: list every violation in language kits."""

import sys

from datagen.kits import KITS_DIR, kit_codes
from datagen.kits.rules import read_kit


def main(codes: list[str]) -> int:
    """Print every violation in the kits of `codes` (all kits if empty). Return 0 if there are none, else 2."""
    failed = False
    for code in codes or kit_codes():
        problems = read_kit(KITS_DIR / f"{code}.json")[1]
        failed |= bool(problems)
        print("\n".join(problems) if problems else f"{code}.json: ok")
    return 2 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
