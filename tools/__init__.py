"""Scripts for people who work on Ryzanstein; nothing here is installed."""
