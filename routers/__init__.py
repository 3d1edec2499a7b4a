"""The task table, the token grammar and the router: token ids in, ordered calls out."""
