"""User profiles: shared by the gateway, its client and the MCP server.

fields     building blocks of the profile API's models
requests   request bodies of the profile API
answers    response bodies
clauses    splitting a summary's text into clauses, and joining them
forbidden  detecting clauses that repeat a forbidden statement
fit        checking what a person writes into a summary
merging    merging two summaries
user_id    the normal form of user ids
training   a user as a JSONL line for `popi train`
written    turning a model's answer into a summary
screening  content that a summary must not contain: links, code, instructions to a model
statements statements about a user: requesting, parsing, splitting, normalising
"""
