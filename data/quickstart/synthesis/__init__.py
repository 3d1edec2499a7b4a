"""What is said in the quickstart, and by whom: utterances, espeak-ng and its speakers."""
