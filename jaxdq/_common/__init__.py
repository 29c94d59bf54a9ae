"""What every floor may lean on, and which knows nothing of quantization: errors, paths, folders, trees, devices."""
