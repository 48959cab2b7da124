"""Benchmarks of tiercel beside its peers and floors: `python -m benchmarks NAME`, or all of them without a name."""
