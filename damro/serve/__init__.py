"""An endpoint that speaks OpenAI's chat completions: any client of theirs asks a local model, with any method.

`errors` says what is refused and how, `requests` reads what is asked, `batching` answers what waits together, `replies`
writes it down, `app` puts them behind HTTP.
"""
