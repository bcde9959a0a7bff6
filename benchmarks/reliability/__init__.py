"""Figures of reliability, one command each: `python -m benchmarks.reliability.NAME`. Results: docs/reliability.md."""
