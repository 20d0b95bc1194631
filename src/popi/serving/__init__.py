"""The gateway: any OpenAI or Anthropic client, personalised by the preference summaries of its end users.

    client ──▶ proxy ──▶ upstream          check the key, identify the user, look up their summary, inject it
                 │
               store ◀── profile API       add signals, read and edit summaries
                 ▲
               worker                      renews stale summaries with the inference model

Nothing here imports torch.
"""
