"""Questions that the papers left open, as commands."""
