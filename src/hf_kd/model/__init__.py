"""`ErasedModel` and what it does: wrap, erase, change weights, train, mask labels, fold, load, save, verify."""
