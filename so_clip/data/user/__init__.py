"""The user's own images: dataset=folder and dataset=csv."""
