"""Helpers for every floor, independent of quantization: errors, paths, folders, trees, devices."""
