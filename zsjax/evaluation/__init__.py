"""What an evaluation is compared with: baselines, other runs, published tables."""
