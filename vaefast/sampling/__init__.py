"""Samplers of the latent space, fitted after training."""
