"""Callbacks for `Trainer`."""
