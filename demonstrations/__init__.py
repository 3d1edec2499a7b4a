"""The papers' claims at CPU size: ``python -m demonstrations NAME``, each against its baseline and controls."""
