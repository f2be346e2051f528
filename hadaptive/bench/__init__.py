"""Benchmarks: whole trainings, operators and networks, each against what people would use instead."""
