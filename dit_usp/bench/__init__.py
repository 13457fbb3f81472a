"""Benchmarks: one transformer step of real models at real size, with random weights and nothing downloaded."""
