"""A server that speaks the OpenAI protocol: `zoo serve DIR`, or `app.make_app` in a program.

errors      what a client is told when a request cannot be answered
schema      validation by JSON Schema; `fields` has the schemas, which /openapi.json publishes
model       a folder, opened to be served: engine, tokenizer, chat template, embeddings
routing     which models answer a request, in which order
speech      prompts to requests, pieces of text as they come, time-outs and cancellation
chat, completions, embeddings, tokens    the endpoints
tools, constraint    tool calls in a model's answer; answers of a given form
metrics     counts for Prometheus
app         the application: routes, keys, limits; `command` runs it
"""
