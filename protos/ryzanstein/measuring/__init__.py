"""What the commands of `ryzanstein bench` share: statistics, the state of the machine, and how results are told."""
