"""zq measured, against this machine's limits and the job systems people use today: `python -m benchmarks`."""
