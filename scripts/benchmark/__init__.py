"""What `scripts/bench` runs: cachefs measured beside its peers, as ratios taken in one run."""
