"""The web application: a chat with base models and their adapters, and a viewer of runs.

`app` assembles the pages, and `guard` protects them. For the chat, `offers` lists models and adapters, `chat_model`
runs the engine, `conversation` and `turn` are the logic, `store` saves settings and conversations, and `chat_page`
with its `controls` is the page. For the viewer, `open_runs` reads runs, `run_curves` and `plot` draw their curves,
`side_by_side` compares them, and `runs_page` is the page. `browse` and `group_view` show the sampled groups, with
`episode_view` for episodes and `folding` for long texts.
"""
