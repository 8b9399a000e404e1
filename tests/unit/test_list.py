"""Lists: rows of paths and URLs, by where they stand in the file; what cannot be had costs one reject."""

from __future__ import annotations

import csv
import io
import json
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.images import jpeg
from helpers.web import Web, after, body, hang_up, serving
from lora_clip.errors import DataError
from lora_clip.inspection.recheck import compare_inputs
from lora_clip.sources import fetch as fetching
from lora_clip.sources import list as lists
from lora_clip.sources.base import Shard
from lora_clip.sources.files import UnreadableError
from lora_clip.sources.list import ListSource
from lora_clip.types import RawSample, WorkRange


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    fetching.opener.cache_clear()
    with serving() as opened:
        yield opened
    fetching.opener.cache_clear()


def shards(location: Any, known: Sequence[Shard] = ()) -> list[Shard]:
    found = ListSource(str(location) if isinstance(location, Path) else location).shards(known)
    return [Shard.from_json(json.loads(json.dumps(one.to_json()))) for one in found]


def read(shard: Shard, start: int = 0, stop: int | None = None) -> list[RawSample]:
    work = WorkRange(shard.id, start, shard.images if stop is None else stop)
    return list(ListSource(shard.path).read(shard, work))


def everything(location: Any) -> list[RawSample]:
    return [sample for shard in shards(location) for sample in read(shard)]


def fill(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    return folder


# --- what the rows say ---

ROWS = [
    {"path": "d/a.v2.jpg", "id": "first", "caption": 'of a "big", red apple\nand more', "score": "0.5"},
    {"path": "b.png", "id": "", "caption": "", "score": ""},
]


def as_csv(rows: Sequence[dict[str, str]], delimiter: str = ",") -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def test_csv_tsv_json_lines_and_parquet_say_the_same(tmp_path: Path) -> None:
    fill(tmp_path, "d/a.v2.jpg", "b.png")
    (tmp_path / "l.csv").write_text("\ufeff" + as_csv(ROWS))
    (tmp_path / "l.tsv").write_text(as_csv(ROWS, "\t"))
    lines = [{name: value for name, value in row.items() if value} for row in ROWS]
    (tmp_path / "l.jsonl").write_text("\n\n".join(map(json.dumps, lines)))
    pq.write_table(pa.Table.from_pylist(lines), tmp_path / "l.parquet", row_group_size=1)
    for suffix in ("csv", "tsv", "jsonl", "parquet"):
        first, second = everything(tmp_path / f"l.{suffix}")
        assert (first.key, first.image, first.path) == ("first", b"d/a.v2.jpg", f"{tmp_path}/d/a.v2.jpg")
        assert first.extras["txt"].decode() == ROWS[0]["caption"]
        assert json.loads(first.extras["json"]) == {"score": "0.5"}
        assert (second.key, second.image, second.extras.get("txt")) == ("b", b"b.png", None)


def test_a_text_is_a_path_a_line(tmp_path: Path) -> None:
    fill(tmp_path, "sub/a.jpg", "ü b.jpg", "c.jpg")
    (tmp_path / "l.txt").write_bytes(f"\ufeffsub/a.jpg\r\n\n{tmp_path}/ü b.jpg\nfile://{tmp_path}/c.jpg".encode())
    assert [(sample.key, sample.image.decode()) for sample in everything(tmp_path / "l.txt")] == [
        ("sub/a", "sub/a.jpg"),
        (f"{tmp_path}/ü b", "ü b.jpg"),
        (f"{tmp_path}/c", "c.jpg"),
    ]


def test_what_cannot_be_read_of_it_costs_its_row(tmp_path: Path) -> None:
    fill(tmp_path, "a.jpg", "z.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    rows = ["path,n", "a.jpg,1", "gone.jpg,2", ",3", "pipe.jpg,4", "a.jpg,5,more", "pipe:cat a.jpg,6", "z.jpg,7"]
    (tmp_path / "l.csv").write_text("\n".join(rows))
    found = everything(tmp_path / "l.csv")
    assert [sample.position for sample in found] == list(range(7))
    assert [sample.damage for sample in found] == [
        None,
        "cannot be read: No such file or directory",
        "row 2 of the list names no path or URL",
        "cannot be read: not a regular file",
        "row 4 of the list cannot be read: it has 3 cells where the header has 2; "
        "a cell with a separator in it goes into quotes",
        "cannot be read: No such file or directory",
        None,
    ]
    (tmp_path / "l.jsonl").write_text('{"file": "a.jpg"}\n{"file": \n[]\n{"file": 3}\n{"file": "z.jpg"}\n')
    damage = [sample.damage for sample in everything(tmp_path / "l.jsonl")]
    assert [one is None for one in damage] == [True, False, False, False, True]
    assert "row 1 of the list cannot be read: it is no JSON" in str(damage[1])


def test_mistakes_are_plain_errors(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x,y\n1,2\n")
    with pytest.raises(
        DataError, match=r"no column called path, file, image or url: its columns are x, y; a list with"
    ):
        shards(tmp_path / "a.csv")
    pq.write_table(pa.table({"image": [b""], "n": [1]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"its columns are n; .* type data=parquet"):
        shards(tmp_path / "a.parquet")
    (tmp_path / "b.csv").write_text('path,caption\na.jpg,"never closed\nb.jpg,x\n')
    with pytest.raises(DataError, match=r"a quote is opened and never closed, in the row that begins with 'a\.jpg,"):
        shards(tmp_path / "b.csv")
    (tmp_path / "a.xlsx").write_text("")
    with pytest.raises(DataError, match=r"no list that is known: give a file of \.csv, \.tsv"):
        shards(tmp_path / "a.xlsx")
    (tmp_path / "b.parquet").write_text("no")
    with pytest.raises(DataError, match=r"b\.parquet is not a whole Parquet file"):
        shards(tmp_path / "b.parquet")


# --- shards ---


@pytest.mark.parametrize("suffix", ["csv", "txt", "parquet"])
def test_a_list_is_cut_into_shards_that_hold_no_names(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lists, "ROWS_PER_SHARD", 4)
    names = [f"{number}.jpg" for number in range(10)]
    fill(tmp_path, *names)
    path = tmp_path / f"l.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.table({"path": names}), path, row_group_size=3)
    else:
        path.write_text("\n".join([*(["path"] if suffix == "csv" else []), *names]))
    found = shards(path)
    assert [(one.id, one.images) for one in found] == [(0, 4), (1, 4), (2, 2)]
    assert not any(name in json.dumps(found[1].to_json()) for name in names)
    assert [sample.image.decode() for one in found for sample in read(one)] == names
    for one in found:
        whole = read(one)
        for start in range(one.images):
            for stop in range(start, one.images + 1):
                assert read(one, start, stop) == whole[start:stop]
    again = shards(path, found)
    assert again == found


def test_new_rows_come_after_the_known_and_changed_ones_are_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lists, "ROWS_PER_SHARD", 3)
    path = tmp_path / "l.txt"
    path.write_text("\n".join(f"{number}.jpg" for number in range(4)))
    first = shards(path)
    with path.open("a") as file:
        file.write("\n4.jpg\n5.jpg\n6.jpg\n7.jpg\n")
    again = shards(path, first)
    assert [(one.id, one.images, one.state["row"]) for one in again] == [(0, 3, 0), (1, 1, 3), (2, 3, 4), (3, 1, 7)]
    assert [one.digest for one in again[:2]] == [one.digest for one in first]
    assert [sample.key for one in again for sample in read(one)] == [str(number) for number in range(8)]
    lines = [{**one.to_json(), "wanted": one.images} for one in again]
    assert compare_inputs(lines, None) == ([], [])
    path.write_text(path.read_text().replace("3.jpg", "x.jpg"))
    assert compare_inputs(lines, None)[0] == [f"shard 1: {path} has others in the 1 rows from row 3 on"]
    assert [one.digest == before.digest for one, before in zip(shards(path, again), again, strict=True)] == [
        True, False, True, True,
    ]  # fmt: skip
    path.unlink()
    problems, notes = compare_inputs(lines, None)
    assert problems == [] and "No such file" in notes[0]


def test_several_lists_are_one_input(tmp_path: Path) -> None:
    fill(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / "1.csv").write_text("file\na.jpg\n")
    (tmp_path / "2.txt").write_text("b.jpg\n")
    found = shards(str(tmp_path))
    assert [(one.id, Path(one.path).name) for one in found] == [(0, "1.csv"), (1, "2.txt")]
    known = found[1:]
    assert [(one.id, Path(one.path).name) for one in shards(str(tmp_path), known)] == [(1, "2.txt"), (2, "1.csv")]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.binary(max_size=120) | st.text("a,\"\n\r\t{}:'1é\0", max_size=60),
    st.sampled_from(["csv", "tsv", "jsonl", "txt"]),
)
def test_each_row_of_any_bytes_is_one_sample_the_same_from_everywhere(
    tmp_path: Path, content: bytes | str, suffix: str
) -> None:
    data = content if isinstance(content, bytes) else content.encode()
    path = tmp_path / f"l.{suffix}"
    path.write_bytes((b"path,caption\n" if suffix == "csv" else b"path\tcaption\n" if suffix == "tsv" else b"") + data)
    try:
        found = shards(path)
    except DataError as error:
        assert "never closed" in str(error)
        return
    for one in found:
        whole = read(one)
        assert [sample.position for sample in whole] == list(range(one.images))
        assert read(one, one.images // 2) == whole[one.images // 2 :]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text('ab,"\n\r ;é', min_size=1, max_size=8), min_size=1, max_size=12), st.integers(1, 5))
def test_captions_that_a_csv_writer_wrote_come_back(tmp_path: Path, captions: list[str], most: int) -> None:
    fill(tmp_path, "a.jpg")
    path = tmp_path / "l.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "caption", "n"])
        writer.writerows(["a.jpg", caption, number] for number, caption in enumerate(captions))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lists, "ROWS_PER_SHARD", most)
        found = everything(path)
    assert [sample.extras["txt"].decode() for sample in found] == captions


# --- URLs ---


def listed(folder: Path, *urls: str) -> Path:
    path = folder / "l.csv"
    path.write_text(as_csv([{"url": url, "caption": f"c{number}"} for number, url in enumerate(urls)]))
    return path


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "FIRST_PAUSE", 0.001)


def test_urls_are_fetched_in_order_with_several_in_flight(tmp_path: Path, web: Web) -> None:
    gate = threading.Barrier(4, timeout=60)
    pictures = [jpeg(seed=number) for number in range(12)]

    def together(number: int) -> Any:
        def answer(request: Any, _: int) -> None:
            gate.wait()
            body(pictures[number])(request, 0)

        return answer

    urls = [web.url(f"/{number} é.jpg", together(number)) for number in range(12)]
    web.answers = {f"/{number}%20%C3%A9.jpg": together(number) for number in range(12)}
    found = everything(listed(tmp_path, *urls))
    assert [sample.image for sample in found] == pictures, "four at a time, or the gate never opens"
    assert [sample.path for sample in found] == urls
    assert [sample.key for sample in found] == [str(number) for number in range(12)]
    assert json.loads(found[3].extras["json"]) == {"url": urls[3]} and found[3].extras["txt"] == b"c3"


def test_what_another_try_mends_is_mended(tmp_path: Path, web: Web, no_pauses: None) -> None:
    busy, broken = body(b"", 503), body(b"half", announced=9)
    urls = [
        web.url("/busy", after([busy, body(b"", 429, Retry_After="0")], body(b"a"))),
        web.url("/drops", after([hang_up, broken], body(b"b"))),
        web.url("/moved", body(b"", 302, Location="/there")),
    ]
    web.url("/there", body(b"c"))
    assert [sample.image for sample in everything(listed(tmp_path, *urls))] == [b"a", b"b", b"c"]
    assert web.asked["/busy"] == web.asked["/drops"] == 3


def test_what_cannot_be_had_is_a_reject_with_its_reason(
    tmp_path: Path, web: Web, no_pauses: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "MOST_BYTES", 1 << 20)
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    endless = b"x" * ((1 << 20) + 1)
    urls = {
        web.url("/gone", body(b"", 404)): "HTTP 404 Not Found",
        web.url("/busy", body(b"", 503)): "HTTP 503 Service Unavailable (after 4 tries)",
        web.url("/drops", hang_up): "(after 4 tries)",
        web.url("/short", body(b"half", announced=9)): "the connection broke after 4 of 9 bytes (after 4 tries)",
        web.url("/large", body(b"", announced=1 << 40)): "larger than 1 MiB",
        web.url("/endless", body(endless)): "larger than 1 MiB",
        web.url("/file", body(b"", 302, Location=f"file://{tmp_path}/secret.jpg")): "is not allowed",
        web.url("/ftp", body(b"", 302, Location="ftp://127.0.0.1/a")): "leads to ftp:",
        web.url("/loop", body(b"", 302, Location="/loop")): "HTTP 302",
        "http://[": "",
        "http://127.0.0.1:x/": "",
        "https://": "",
        "gopher://x/": "gopher:// is not read",
    }
    sound = web.url("/sound", body(b"sound"))
    found = everything(listed(tmp_path, *urls, sound))
    for sample, reason in zip(found, urls.values(), strict=False):
        assert (
            sample.image == b"" and str(sample.damage).startswith("cannot be read: ") and reason in str(sample.damage)
        )
    assert found[-1].image == b"sound"
    assert web.asked["/gone"] == 1 and web.asked["/busy"] == 4


def test_a_server_that_stalls_or_drips_is_given_up(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "SILENCE", 0.05)
    monkeypatch.setattr(fetching, "WHOLE_TRY", 0.05)
    ended = threading.Event()

    def stalls(request: Any, number: int) -> None:
        ended.wait(60)

    def drips(request: Any, number: int) -> None:
        request.send_response(200)
        request.send_header("Content-Length", "1000000")
        request.end_headers()
        while not ended.wait(0.01):
            request.wfile.write(b"x")

    try:
        for path, answer, said in (("/stalls", stalls, "timed out"), ("/drips", drips, "not done after")):
            pauses: list[float] = []
            with pytest.raises(UnreadableError, match=said):
                fetching.fetch(web.url(path, answer), pauses.append)
            assert len(pauses) == 3 and pauses[0] < pauses[2]
    finally:
        ended.set()


def test_a_server_that_asks_for_a_pause_gets_it_within_reason(web: Web) -> None:
    pauses: list[float] = []
    url = web.url("/busy", after([body(b"", 429, Retry_After="7")], body(b"done")))
    assert fetching.fetch(url, pauses.append) == b"done" and pauses == [7.0]
    with pytest.raises(UnreadableError, match="429"):
        fetching.fetch(web.url("/for_ever", body(b"", 429, Retry_After="86400")), pauses.append)
    assert pauses == [7.0]


def test_reading_ahead_is_bounded_and_ends_with_who_reads(
    tmp_path: Path, web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lora_clip.sources.read_ahead.AHEAD", 8)
    urls = [web.url(f"/{number}", body(b"x")) for number in range(100)]
    (shard,) = shards(listed(tmp_path, *urls))
    before = threading.active_count()
    samples = ListSource(shard.path).read(shard, WorkRange(0, 0, 100))
    assert [next(samples).image for _ in range(3)] == [b"x"] * 3
    assert sum(web.asked.values()) <= 3 + 8
    samples.close()  # type: ignore[attr-defined]
    for _ in range(1000):
        if threading.active_count() <= before + 1:  # the server's own
            break
        threading.Event().wait(0.01)
    assert sum(web.asked.values()) <= 3 + 8
