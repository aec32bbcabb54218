"""check_shared: ranks that do not see the same folder stop before any work, with one line."""

from __future__ import annotations

import pytest

import engine.distributed.shared_folder as shared_folder
from engine.base.errors import UserError
from engine.distributed.shared_folder import check_shared
from engine.distributed.world import World, start_world
from tests.ranks import run_ranks


def look(folder):
    """Return the errors of a rank for a shared file, a missing file and a different file; None where none."""
    world, said = start_world(), []
    shared_folder.SEEN_WITHIN_S, shared_folder.LOOK_EVERY_S = 1.0, 0.05
    own = folder / f"rank{world.rank}" / "config.json"
    if world.is_first:
        (folder / "config.json").write_text("{}")
        own.parent.mkdir()
        own.write_text("{}")
    for file in (folder / "config.json", own, own):
        try:
            check_shared(file, world)
            said.append(None)
        except UserError as error:
            said.append(str(error))
        if not world.is_first and not own.exists():
            own.parent.mkdir()
            own.write_text("{ }")
    return said


@pytest.mark.slow
def test_two_ranks_with_shared_and_own_folders(tmp_path):
    first, second = run_ranks(look, 2, tmp_path)
    assert first[0] is second[0] is None
    for said, folder in ((first, "rank0"), (second, "rank1")):
        for line in said[1:]:
            assert line.startswith(f"rank 1 does not see {tmp_path / folder / 'config.json'} as rank 0 wrote it: ")


def test_single_rank_checks_nothing(tmp_path):
    check_shared(tmp_path / "absent", World(0, 1, None))
