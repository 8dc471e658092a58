"""The broker's two implementations. Only `app` chooses between them."""
