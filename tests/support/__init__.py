"""Helpers that tests share: real servers on loopback, nothing mocked."""
