"""Ways that were asked for and do not pay by this project's own measurements; names and behavior may change."""
