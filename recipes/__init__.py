"""Recipes that come with the project, and the small model that demonstrates them."""
