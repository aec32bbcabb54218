"""The folder of a real model that the processes of a test run share: made once, read by all, removed by the last."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.real.models import shared_folder


def _make(folder: Path) -> None:
    folder.mkdir()
    (folder / "config.json").write_text("{}")


def test_a_second_reader_does_not_wait_for_the_first(tmp_path):
    entered = threading.Event()

    def second() -> None:
        with shared_folder(tmp_path / "model", _make):
            entered.set()

    with shared_folder(tmp_path / "model", _make):
        thread = threading.Thread(target=second, daemon=True)
        thread.start()
        assert entered.wait(timeout=30)
        thread.join()


def test_readers_that_start_together_make_the_folder_once_and_the_last_removes_it(tmp_path):
    made, together = [], threading.Barrier(4, timeout=30)

    def make(folder: Path) -> None:
        made.append(folder)
        _make(folder)

    def read(_: int) -> bool:
        with shared_folder(tmp_path / "model", make) as folder:
            together.wait()  # nobody leaves before all are in
            return (folder / "config.json").is_file()

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(read, range(4)))
    assert len(made) == 1
    assert not (tmp_path / "model").exists()
