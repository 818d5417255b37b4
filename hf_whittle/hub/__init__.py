"""Publishing on the Hub: model cards, commits, and a `Trainer` that makes them."""
