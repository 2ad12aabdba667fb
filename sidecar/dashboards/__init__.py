"""Grafana dashboards and Prometheus rules, generated from the policies in force."""
