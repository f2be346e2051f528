from hadaptive.bench.accuracy import AccuracyConfig, bench_accuracy, mean_interval

__all__ = ["AccuracyConfig", "bench_accuracy", "mean_interval"]
