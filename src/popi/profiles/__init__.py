"""What a user profile is: shared by the gateway, its client and the MCP server.

models     bodies and answers of the profile API
clauses    a summary's text in parts
forbidden  whether a clause says again what a user has forbidden
fit        what a person may write into a summary
merging    one summary of two
user_id    the one form of a user id
training   a user as the JSONL line that `popi train` reads
written    what a model wrote, as a summary
"""
