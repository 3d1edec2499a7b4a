"""What a sweep of towers says: scores as z-scores, a ranking, how far tasks agree, and a page."""
