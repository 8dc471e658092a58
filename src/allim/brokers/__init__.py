"""The implementations of broker and ledger. Only `app` chooses between them."""
