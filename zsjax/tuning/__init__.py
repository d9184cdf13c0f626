"""Making a simulator: searches collected with a real engine, examples made of them, tuning, and the gates after it."""
