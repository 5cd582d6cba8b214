"""The board: slots lie at the arena's end and do not overlap."""

from itertools import pairwise

from raylite._types import board
from raylite._types.ids import TaskID

CAPACITY = 1 << 24


def test_slots_fill_the_arenas_last_bytes_and_share_none() -> None:
    offsets = sorted(board.slot_offset(CAPACITY, token) for token in range(board.SLOTS))
    assert offsets[0] == CAPACITY - board.SIZE
    assert offsets[-1] == CAPACITY - board.SLOT
    assert {after - before for before, after in pairwise(offsets)} == {board.SLOT}


def test_tokens_go_round_the_slots() -> None:
    assert board.slot_offset(CAPACITY, 3) == board.slot_offset(CAPACITY, 3 + board.SLOTS)


def test_a_slot_has_room_for_a_task_id() -> None:
    assert TaskID.size() <= board.SLOT
