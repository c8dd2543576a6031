"""probpose."""
