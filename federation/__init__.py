"""Federated learning that a supercomputer can trust."""
