"""Networks side by side: accuracy, a training step, latency where they are deployed."""
