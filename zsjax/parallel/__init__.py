"""Devices and hosts: the mesh, where arrays are cut, many hosts, checkpoints of sharded state."""
