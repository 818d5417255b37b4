"""Record of a student: its origin and facts of its making, as `results.json` holds them."""
