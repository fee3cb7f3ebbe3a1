"""The hostile set, one module for each kind of file in it."""
