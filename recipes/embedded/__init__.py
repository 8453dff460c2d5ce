"""The embedded demo model: its text, its training and its measurement."""

from pathlib import Path

MODEL = Path(__file__).resolve().parent / "model"  # an editable install is made of links
