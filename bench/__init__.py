"""Side-by-side measurement of the sidecar and its peers: `python -m bench --help`."""
