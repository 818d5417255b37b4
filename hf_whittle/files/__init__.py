"""Files: written whole, locked while they are written, and read from disk or from the Hub."""
