"""The demo: its text, its teacher and its recipe."""
