"""One run in several processes. Importing the package imports nothing heavy."""
