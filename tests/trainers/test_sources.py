"""Folders and lists of videos and prompts, and what a first look at a video finds."""

import json
from pathlib import Path

import pytest

from pipelines.catalog.registry import Registry
from tests.trainers.videos import turned, write_grey
from trainers.data.prompts import read_prompts
from trainers.settings.prepare import ClipShape, PrepareSettings
from trainers.sources.inspect import nearest_size, probe
from trainers.sources.listing import Item, kind_of, read_items

SHAPE = ClipShape(sizes=((32, 16),), num_frames=9, fps=8, clips_per_video=1)


def test_a_folder_gives_its_videos_with_the_captions_beside_them(tmp_path: Path) -> None:
    for name in ("b.mp4", "a/c.MOV", "notes.pdf"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "b.txt").write_text(" a red\n circle ")
    items = read_items(tmp_path)
    assert items == [Item(tmp_path / "a/c.MOV", ""), Item(tmp_path / "b.mp4", "a red circle")]
    assert kind_of(items) == "videos"


ROWS = [{"path": "a.mp4", "cap": ["one", "two"]}, {"path": "b.mp4", "cap": "three, four"}]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("videos2caption.json", json.dumps(ROWS)),
        ("list.jsonl", "\n".join(map(json.dumps, ROWS)) + "\n\n"),
        ("list.csv", 'file_name,text,fps\na.mp4,one,16\nb.mp4,"three, four",16\n'),
    ],
)
def test_lists_give_files_beside_them_or_in_a_folder_videos(
    name: str, text: str, tmp_path: Path
) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "b.mp4").touch()
    (tmp_path / name).write_text(text)
    expected = [Item(tmp_path / "a.mp4", "one"), Item(tmp_path / "videos/b.mp4", "three, four")]
    assert read_items(tmp_path / name) == expected


def test_a_folder_with_a_list_of_its_own_is_read_by_that(tmp_path: Path) -> None:
    (tmp_path / "other.mp4").touch()
    (tmp_path / "videos2caption.json").write_text(json.dumps(ROWS))
    assert [item.caption for item in read_items(tmp_path)] == ["one", "three, four"]


def test_a_text_file_gives_prompts_alone(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("# mine\na  cat\n\na dog\n")
    items = read_items(tmp_path / "prompts.txt")
    assert items == [Item(None, "a cat"), Item(None, "a dog")]
    assert kind_of(items) == "prompts"


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("x.json", "{", "x.json is not valid JSON"),
        ("x.json", '{"a": 1}', "holds no list of videos"),
        ("x.jsonl", '{"cap": "a"}', "row 1 of .* names no file"),
        ("x.csv", "path,cap\n,a\n", "row 1 of .* names no file"),
        ("x.txt", "# nothing\n", "holds no videos or prompts"),
        ("x.pdf", "", "is no folder and no .csv"),
    ],
)
def test_a_source_that_cannot_be_read_is_refused_in_a_sentence(
    name: str, text: str, said: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=f"^source: .*{said}"):
        read_items(tmp_path / name)


def test_a_look_at_a_video_finds_what_speaks_against_it(tmp_path: Path) -> None:
    good = write_grey(tmp_path / "good.mp4", range(0, 180, 20), 8, (48, 32))
    seen = probe(Item(good, "a"), SHAPE)
    assert (seen.problem, seen.size, seen.codec) == ("", (32, 16), "h264")
    assert (seen.width, seen.height, seen.fps) == (48, 32, 8)
    assert seen.kept == pytest.approx(0.75)
    assert probe(Item(good, ""), SHAPE).problem == "it has no caption"
    short = write_grey(tmp_path / "short.mp4", [0] * 7, 8, (48, 32))
    small = write_grey(tmp_path / "small.mp4", [0] * 9, 8, (48, 14))
    slow = write_grey(tmp_path / "slow.mp4", [0] * 9, 6, (48, 32))
    assert "too short for 9 frames" in probe(Item(short, "a"), SHAPE).problem
    assert "48x14 is smaller than 32x16" in probe(Item(small, "a"), SHAPE).problem
    assert "6 frames a second are fewer than 8" in probe(Item(slow, "a"), SHAPE).problem
    (tmp_path / "no.mp4").write_text("no video")
    assert "cannot be read" in probe(Item(tmp_path / "no.mp4", "a"), SHAPE).problem
    assert "does not exist" in probe(Item(tmp_path / "none.mp4", "a"), SHAPE).problem


def test_a_video_that_lies_on_its_side_is_seen_upright(tmp_path: Path) -> None:
    video = turned(write_grey(tmp_path / "phone.mp4", [0] * 9, 8, (48, 32)))
    seen = probe(Item(video, "a"), SHAPE)
    assert (seen.width, seen.height) == (32, 48)


def test_the_nearest_size_in_shape_is_taken_and_nothing_is_enlarged() -> None:
    sizes = ((832, 480), (480, 832), (624, 624), (416, 240))
    assert nearest_size(1280, 720, sizes) == (832, 480)
    assert nearest_size(720, 1280, sizes) == (480, 832)
    assert nearest_size(1000, 1000, sizes) == (624, 624)
    assert nearest_size(640, 360, sizes) == (416, 240)
    assert nearest_size(300, 200, sizes) is None


def test_all_readers_find_the_same_prompts_in_a_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "prompts" / "mine.txt"
    file.parent.mkdir()
    file.write_bytes("# mine\n a cat \n  # not this\n\n\xe9t\xe9\n".encode("latin-1"))
    monkeypatch.setattr("pipelines.catalog.registry.PRESETS", tmp_path)
    prompts = ["a cat", "\ufffdt\ufffd"]
    assert Registry().prompts("mine") == prompts
    assert [prompt.text for prompt in read_prompts(file)] == prompts
    assert [item.caption for item in read_items(file)] == prompts


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"size": ("65x64",)}, "multiples of 16"),
        ({"size": ("big",)}, "WIDTHxHEIGHT"),
        ({"frames": 6}, "4n[+]1; try 5"),
        ({"fps": 0}, "fps"),
    ],
)
def test_settings_that_cannot_be_are_refused(given: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        PrepareSettings.model_validate({"model": "tiny-wan", **given})
