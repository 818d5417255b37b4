"""Files of the demo: its teacher and its recipe."""

from pathlib import Path

TEACHER = str(Path(__file__).parent / "teacher")
"""Folder of the demo's teacher, a GPT-NeoX of 1.7M parameters trained on the Python standard library."""
