"""Kills, a full disk and damaged files lose no accepted job and change no result."""

from __future__ import annotations

import pytest

from tests.chaos import Chaos
from tests.full_disk import small_disk_or_folder


@pytest.mark.slow
def test_kills_a_full_disk_and_damaged_files_lose_nothing(tmp_path):
    with small_disk_or_folder(tmp_path / "disk", megabytes=16) as disk:
        chaos = Chaos(disk)
        chaos.run(clients=4, jobs=15, kills=2)
        chaos.check()


@pytest.mark.slow
def test_hundreds_of_jobs_through_many_kills(tmp_path):
    with small_disk_or_folder(tmp_path / "disk", megabytes=32) as disk:
        chaos = Chaos(disk, seed=2)
        chaos.run(clients=8, jobs=60, kills=20)
        chaos.check()
        assert chaos.refused or not disk.can_be_full
