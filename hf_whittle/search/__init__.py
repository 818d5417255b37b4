"""Search of subnets: the run that asks an algorithm and evaluates, its result, its files and its processes."""
