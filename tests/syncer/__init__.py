"""Tests of the syncer."""
