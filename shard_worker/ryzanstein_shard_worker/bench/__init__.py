"""What this package adds to `ryzanstein bench`. The commands import torch when they run, not before."""
