"""`Cuts`: which nodes are cut off, as every process of a cluster sees it."""

from pathlib import Path

import pytest

from raylite.testing.cuts import Cuts

ONE, OTHER, THIRD = "1" * 16, "2" * 16, "3" * 16


def test_what_one_process_cuts_is_cut_for_all(tmp_path: Path) -> None:
    here, there = Cuts(str(tmp_path / "cuts")), Cuts(str(tmp_path / "cuts"))
    assert there.passes(ONE, OTHER)
    here.set([ONE, THIRD])
    assert not there.passes(ONE, OTHER)
    assert not there.passes(OTHER, ONE)
    assert there.passes(ONE, THIRD)
    here.set([OTHER])
    assert there.passes(ONE, THIRD)
    assert not there.passes(OTHER, THIRD)
    here.set([])
    assert there.passes(ONE, OTHER)
    here.close()
    there.close()


def test_a_cut_of_more_nodes_than_there_is_room_for_is_refused(tmp_path: Path) -> None:
    cuts = Cuts(str(tmp_path / "cuts"))
    with pytest.raises(ValueError, match="cannot be cut off at once"):
        cuts.set([ONE] * 5000)
    assert cuts.passes(ONE, OTHER)
    cuts.close()
