"""Load on a cluster that serves, and what it was like to wait for it: `ryzanstein bench serving` and `scaling`."""
