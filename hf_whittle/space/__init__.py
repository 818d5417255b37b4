"""Search spaces: subnets that exist, subnets that lie in a bin, and moves between them."""
