"""Facts of a student's making, as `results.json` holds them."""
