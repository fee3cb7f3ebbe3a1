"""Features and labels become a head with scores: `head`, `splits`, `groups`, `leaks`, `scoring`."""
