"""Published weights of rewards: what is missing is said in words, and nothing is downloaded."""

import hashlib
from pathlib import Path

FOLDER = Path("models/rewards")  # where they are looked for first


def require_file(path: Path, repository: str, size_gb: float) -> None:
    """ValueError with the address in words, the size and the place, where the file is missing."""
    if not path.is_file():
        raise ValueError(
            f"reward.settings.weights: {path} is not here; it is {path.name} (about {size_gb:g} "
            f"GB) of {repository} on the Hugging Face hub: `hf download {repository} {path.name} "
            f"--local-dir {path.parent}`"
        )


def require_folder(path: Path, repository: str, size_gb: float) -> None:
    """As `require_file`, for a folder of transformers."""
    if not (path / "config.json").is_file():
        raise ValueError(
            f"reward.settings.folder: {path} is not here; it is {repository} (about {size_gb:g} "
            f"GB) on the Hugging Face hub: `hf download {repository} --local-dir {path}`"
        )


def require_md5(path: Path, expected: str) -> None:
    """ValueError where the file is not the published one: cut short, or another version."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "md5").hexdigest()
    if found != expected:
        raise ValueError(
            f"reward.settings.weights: {path} has MD5 {found} but the published file has "
            f"{expected}; download it again"
        )
