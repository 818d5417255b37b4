"""Stores of teacher targets: written once, read in place of the teacher."""
