"""Faults of every kind done to cachefs on real mounts, and whether it holds: `scripts/torture`."""
