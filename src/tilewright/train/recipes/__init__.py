"""Recipes: whole training runs, from files to exported models, as ``tilewright train`` runs them."""
