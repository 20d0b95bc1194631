"""What a user profile is: shared by the gateway, its client and the MCP server.

fields     what bodies and answers of the profile API are made of
requests   its bodies
answers    its answers
clauses    a summary's text in parts
forbidden  whether a clause says again what a user has forbidden
fit        what a person may write into a summary
merging    one summary of two
user_id    the one form of a user id
training   a user as the JSONL line that `popi train` reads
written    what a model wrote, as a summary
screening  what a summary may not carry: links, code, instructions to a model
statements one statement per line: asked for, read, cut, in normal form
"""
