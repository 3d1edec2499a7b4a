"""Heads that generate images, sound, speech and video, most of them with frozen experts."""
