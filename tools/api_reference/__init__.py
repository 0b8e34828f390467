"""Writes docs/API_REFERENCE.md from the comments of the protos and the client, and the guide's table of flags."""
