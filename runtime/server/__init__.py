"""An HTTP server that speaks OpenAI's protocol: the model in a process of its own, the web in this one.

`run.serve` starts both; `app.create_app` is the web side alone, an ASGI application. Nothing is imported here, so that
the engine's process loads no web framework and a bare installation can import the package.
"""
