"""Search algorithms behind one interface, the run that drives them, and its result."""
