"""What runs in a peer's own environment: each module loads the model with one engine and measures it by `measure`."""
