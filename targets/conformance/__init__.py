"""The suite of checks that every target passes."""
