"""Where denoisers come from and what surrounds them: diffusers' UNets, text encoders, decoders, Flax pipelines."""
