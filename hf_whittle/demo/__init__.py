"""Files of the demo: its teacher and its recipe."""
