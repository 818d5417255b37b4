"""Fitnesses: functions of a subnet that a search minimizes."""
