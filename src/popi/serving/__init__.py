"""The gateway: any OpenAI or Anthropic client, personalised by the preference summaries of its end users.

    client ──▶ proxy ──▶ upstream          who calls (keys), for whom (identity), which summary (store), put in (inject)
                 │
               store ◀── profile API       signals come in, summaries are read and edited
                 ▲
               worker                      renews stale summaries with the inference model

Nothing here imports torch.
"""
