"""One ruler for search, export and benchmarks: how a network is lowered to each runtime, run there, and timed."""
