"""Evaluation: a compressed model beside its dense one on identical inputs."""
