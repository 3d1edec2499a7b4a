"""Arms that train the same small LLaVA on the same samples, each with the trainer that it is named after."""
