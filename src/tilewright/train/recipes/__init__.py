"""Recipes: whole training runs, from files to model files, as ``tilewright train`` runs them."""
