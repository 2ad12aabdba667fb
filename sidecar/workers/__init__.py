"""Several processes on the same ports.

    lead ── binds the ports, starts workers, replaces those that die; the one admin listener; batches
      ├── worker 1 ── accepts and serves: a data plane, and no more
      └── worker 2 ── …

Each worker has a Unix socket pair to the lead (`channel`). By it go reports (`report`), orders (a
generation to serve, a fault, a purge), and hints from worker to worker (`hints`). What must be known in order
between them, which answers were made while a call went wrong, is in shared memory (`ledger`).
"""
