"""Faults put between a real client and a real server, and into what they run on."""
