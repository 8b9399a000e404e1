"""Many shards in little memory: what goes in comes out, wherever one looks, and numbers are there without unpacking."""

from __future__ import annotations

import pickle
import tracemalloc
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_clip.compact import IntMap
from lora_clip.sources.base import Shard
from lora_clip.sources.shard_list import BLOCK, ShardList, ShardsById
from lora_clip.types import UNCOUNTED


def made(count: int, first: int = 0, each: int = 1000) -> Iterator[Shard]:
    """Shards of so many names, as a folder's are, every third of them not counted."""
    for id_ in range(first, first + count):
        images = UNCOUNTED if id_ % 3 == 2 else each
        files = [f"{id_:06d}/photograph-\udcff-{number:09d}.jpg" for number in range(each)]
        yield Shard(id_, "folder", f"/data/{id_}", images, id_ * 7, "ab" * 32, {"jpg": each}, {}, {"files": files})


@pytest.mark.parametrize("count", [0, 1, 7, 40])
def test_shards_come_back_as_they_were_in_any_order(count: int) -> None:
    expected = list(made(count, each=100))
    packed = ShardList(made(count, each=100))
    assert len(packed._blocks) == (2 if count == 40 else 0), "blocks and what is not full yet are both looked into"
    assert list(packed) == expected and [packed[at] for at in reversed(range(count))] == expected[::-1]
    assert packed[-3:] == expected[-3:] and packed[1::2] == expected[1::2]
    assert [*packed.ids] == [one.id for one in expected] and [*packed.images] == [one.images for one in expected]
    assert [*packed.bytes] == [one.bytes for one in expected]
    with pytest.raises(IndexError):
        packed[count]


def test_lists_are_equal_where_their_shards_are() -> None:
    assert ShardList(made(40, each=100)) == ShardList(made(40, each=100)) != ShardList(made(40, each=99))
    assert ShardList(made(3)) != ShardList(made(2)) and pickle.loads(pickle.dumps(ShardList(made(3)))) == ShardList(
        made(3)
    )


def test_shards_are_found_by_ids_in_any_order_all_or_some() -> None:
    packed = ShardList([*made(3, first=10), *made(3, first=2)])
    everything, some = ShardsById(packed), ShardsById(packed, [11, 3])
    assert list(everything) == [2, 3, 4, 10, 11, 12] and [everything[id_].id for id_ in everything] == list(everything)
    assert (list(some), 11 in some, 12 in some, some.get(12), some[3].path) == ([3, 11], True, False, None, "/data/3")


def test_a_million_names_take_little_memory() -> None:
    tracemalloc.start()
    packed = ShardList(made(100))
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(packed) == 100
    assert held < 100 * 1000 * 12 + 2 * BLOCK, "12 bytes a name, of about 120 as strings"


@given(st.dictionaries(st.integers(-(2**63), 2**63 - 1), st.integers(-(2**63), 2**63 - 1)), st.integers())
def test_an_int_map_is_what_a_dict_is(pairs: dict[int, int], absent: int) -> None:
    found = IntMap(pairs.items())
    assert found == pairs and list(found) == sorted(pairs) and len(found) == len(pairs)
    assert [found[key] for key in pairs] == list(pairs.values())
    assert (absent in found) == (absent in pairs) and found.get(absent) == pairs.get(absent)
    assert pickle.loads(pickle.dumps(found)) == pairs
