"""Image files: the first frame that image-to-video Wan continues."""

from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

MAX_PIXELS = 64 * 10**6  # far above any video; a small file can unpack to far more


def read_image(path: Path) -> Image.Image:
    """The picture as people see it: RGB, turned as its camera says, without transparency.

    ValueError in one sentence for a file that is no image, is damaged or is too large.
    """
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(
                    f"image {path.name} has {image.width}x{image.height} pixels but at most "
                    f"{MAX_PIXELS // 10**6} million can be used; make it smaller"
                )
            turned = ImageOps.exif_transpose(image)
            if "A" in turned.getbands() or "transparency" in turned.info:
                turned = turned.convert("RGBA")
                ground = Image.new("RGBA", turned.size, "white")
                turned = Image.alpha_composite(ground, turned)
            return turned.convert("RGB")
    except Image.DecompressionBombError as error:
        raise ValueError(f"image {path.name} is too large; make it smaller") from error
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ValueError(
            f"image {path.name} cannot be read; give a PNG, JPEG or WebP file"
        ) from error


def crop_to_ratio(image: Image.Image, width: int, height: int) -> Image.Image:
    """The middle of the image in the ratio of width to height; all of it where that fits.

    Stock diffusers would squash the rest in instead, which no video that Wan learned from was.
    """
    scale = min(image.width / width, image.height / height)
    size = round(width * scale), round(height * scale)
    left, top = (image.width - size[0]) // 2, (image.height - size[1]) // 2
    return image.crop((left, top, left + size[0], top + size[1]))
