"""What a reply answers by the rules of each benchmark, and what that is worth: parsers and scores of single answers."""
