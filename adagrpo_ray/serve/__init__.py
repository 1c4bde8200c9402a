"""The web application: chat with a base model and its adapters, and look at runs.

`app` puts the pages together and guards them. Of the chat, `offers` finds what there is to chat with, `adapters` reads
an adapter for the engine, `model` is the engine, `conversation` and `stream` are its logic, `store` keeps settings and
conversations, and `chat_page` is what is seen of it.
"""
