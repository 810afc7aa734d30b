"""What the page is made of beside Python: scripts, styles and templates in files."""

from pathlib import Path

STATIC = Path(__file__).parent / "static"
