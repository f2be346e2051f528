from hadaptive.bench.accuracy import AccuracyConfig, bench_accuracy, mean_interval, print_accuracy

__all__ = ["AccuracyConfig", "bench_accuracy", "mean_interval", "print_accuracy"]
