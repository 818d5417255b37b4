"""Stores of teacher targets: written once, then read instead of running the teacher."""
