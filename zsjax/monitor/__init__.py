"""What a run measures while it goes: metrics, use of the devices, costs, health, episodes."""
