"""The commands of the one program, a module for each."""
