"""The web application: chat with a base model and its adapters, and look at runs.

`app` puts the pages together, and `guard` stands before them. Of the chat, `offers` finds what there is to chat with,
`adapters` reads an adapter for the engine, `model` is the engine, `conversation` and `turn` are its logic, `store`
keeps settings and conversations, and `chat_page` with its `controls` is what is seen of it. Of the runs, `shelf` has
them open, `curves`, `plot` and `comparison` draw them, `browse`, `why` and `group_view` show their sampled groups, and
`runs_page` is the page.
"""
