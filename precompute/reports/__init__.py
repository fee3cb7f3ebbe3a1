"""Pictures of results: `plots`."""
