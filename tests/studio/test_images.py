"""Images that videos start from: kept by content, found again from links, clips and commands."""

import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.catalog.registry import Registry
from pipelines.files.images import MAX_PIXELS, read_image
from pipelines.recipe import FirstFrame
from studio.compare.images import Images
from studio.compare.variants import Variant, cli_command, from_recipe, to_recipe
from studio.studio import Studio, without_folders
from tests.studio.conftest import PROMPT

IMAGE_MODEL = Variant(model="tiny-wan-i2v")


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "my photo.jpg"
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, quality=95)
    return path


@pytest.fixture
def studio(tmp_path: Path) -> Studio:
    return Studio(tmp_path / "data", Registry(), viewer=False)


def test_an_upload_is_kept_when_the_browsers_copy_is_gone(studio: Studio, photo: Path) -> None:
    before = np.asarray(read_image(photo))
    name = studio.add_image(str(photo))
    photo.unlink()
    kept = studio.images.path(name)
    assert kept == studio.data / "images" / f"{name}.png"
    np.testing.assert_array_equal(np.asarray(read_image(kept)), before)


def test_the_same_picture_is_one_file_and_another_one_is_another(
    studio: Studio, photo: Path, tmp_path: Path
) -> None:
    renamed = tmp_path / "copy.jpg"
    renamed.write_bytes(photo.read_bytes())
    other = tmp_path / "other.png"
    Image.new("RGB", (8, 8), "red").save(other)
    names = [studio.add_image(str(path)) for path in (photo, renamed, other)]
    assert names[0] == names[1] != names[2]
    assert sorted(p.stem for p in studio.images.folder.iterdir()) == sorted({*names})


def test_a_picture_is_turned_as_its_camera_says_and_loses_its_metadata(
    studio: Studio, tmp_path: Path
) -> None:
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a secret place"  # orientation, description
    Image.new("RGB", (30, 20), "red").save(path, exif=exif)
    with Image.open(studio.images.path(studio.add_image(str(path)))) as kept:
        assert kept.size == (20, 30)
        assert not kept.getexif()


def test_transparent_pixels_become_white(tmp_path: Path) -> None:
    path = tmp_path / "clear.png"
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(path)
    assert read_image(path).getpixel((0, 0)) == (255, 255, 255)


def test_what_is_no_image_or_too_large_is_refused_in_one_sentence(
    studio: Studio, tmp_path: Path
) -> None:
    text, large = tmp_path / "a.png", tmp_path / "b.png"
    text.write_bytes(b"<svg onload=alert(1)>")
    side = int(MAX_PIXELS**0.5) + 1
    Image.new("1", (side, side)).save(large)
    with pytest.raises(ValueError, match=r"^image a\.png cannot be read; give a PNG, JPEG or WebP"):
        studio.add_image(str(text))
    with pytest.raises(ValueError, match=r"^image b\.png has .* make it smaller$"):
        studio.add_image(str(large))
    assert list(studio.images.folder.iterdir()) == []


@pytest.mark.parametrize("name", ["", "../../etc/passwd", "0" * 16, None, "x" * 16])
def test_only_names_of_images_that_are_here_are_opened(name: str, studio: Studio) -> None:
    with pytest.raises(ValueError, match=r"is not in this studio; upload it"):
        studio.images.path(name)


def test_the_image_goes_to_the_variants_that_continue_one(studio: Studio, photo: Path) -> None:
    name = studio.add_image(str(photo))
    text, image = studio.recipes([Variant(model="tiny-wan"), IMAGE_MODEL], PROMPT, name)
    assert text.image is None
    assert image.image == FirstFrame(path=str(studio.images.path(name)), fingerprint=name)
    assert studio.takes_image(["tiny-wan", "tiny-wan-i2v"])
    assert not studio.takes_image(["tiny-wan", "unknown"])


def test_a_variant_that_lacks_its_image_says_so_before_it_runs(studio: Studio) -> None:
    outlook = studio.forecast([Variant(model="tiny-wan"), IMAGE_MODEL], PROMPT)
    assert list(outlook.problems) == ["B"]
    assert outlook.problems["B"].startswith("image is missing")


def test_another_image_is_another_clip_and_the_same_one_is_the_same(
    studio: Studio, photo: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.png"
    Image.new("RGB", (8, 8), "red").save(other)
    names = [studio.add_image(str(path)) for path in (photo, other, photo)]
    keys = [studio.recipes([IMAGE_MODEL], PROMPT, name)[0].key() for name in names]
    assert keys[0] == keys[2] != keys[1]


def test_a_recipe_finds_its_image_again_and_its_command_names_it(
    studio: Studio, photo: Path
) -> None:
    (recipe,) = studio.recipes([IMAGE_MODEL], PROMPT, studio.add_image(str(photo)))
    path = studio.images.path(studio.images.name(recipe.image))
    assert to_recipe(studio.registry, from_recipe(recipe), recipe.prompt, path) == recipe
    words = shlex.split(cli_command(studio.registry, recipe, "a.mp4"))
    assert f"--image={path}" in words
    assert studio.images.name(FirstFrame(path="/etc/passwd", fingerprint="../../etc")) == ""


def test_viewers_add_no_images_and_see_no_folders(studio: Studio, photo: Path) -> None:
    (recipe,) = studio.recipes([IMAGE_MODEL], PROMPT, studio.add_image(str(photo)))
    assert str(studio.data) not in without_folders(recipe).to_json()
    viewer = Studio(studio.data, Registry(), viewer=True)
    with pytest.raises(ValueError, match="viewing only"):
        viewer.add_image(str(photo))


def test_every_example_is_an_image_with_its_prompt(tmp_path: Path) -> None:
    images = Images(tmp_path)
    examples = images.examples()
    assert len(examples) >= 4
    assert all(images.path(e.name) == e.image and e.prompt for e in examples)
