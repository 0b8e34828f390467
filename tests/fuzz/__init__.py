"""Input that nobody meant: the public services are called with broken, extreme and interrupted calls, and must go on.

`python -m tests.fuzz --minutes 10` starts a cluster on two ranks and does that for ten minutes;
`--schemathesis PROGRAM` puts schemathesis against the HTTP port in its place. tests/cluster/test_fuzz.py is the short
form.
"""
