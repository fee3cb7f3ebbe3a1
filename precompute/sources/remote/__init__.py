"""Object stores: `address` (what an address may be), `store` (the contract) with `s3` and `generic`, and the sources.

`folder` is a prefix of class folders, `named` what a table or a list names, `shards` tar files read by ranges.
"""
