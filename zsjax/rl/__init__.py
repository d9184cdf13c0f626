"""Reinforcement learning on tokens: masks, log-probs, advantages, losses, updates."""
