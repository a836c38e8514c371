"""The report's page: one HTML file."""
