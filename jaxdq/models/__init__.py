"""Sources of denoisers and their surroundings: diffusers' UNets, text encoders, decoders, Flax pipelines."""
