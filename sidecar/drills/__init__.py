"""Stress tests and drills: real load at real processes, real faults, and a verdict from what was measured."""
