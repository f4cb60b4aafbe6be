"""Training: recipes, one small core on accelerate, and the stages that run on it."""
