"""Search spaces: the subnets there are, those that lie in a bin, and the moves between them."""
