"""The adapter to the OpenAI Agents SDK: the only package that uses the SDK's internals.

The SDK's hooks cannot replay a result, and the SDK saves its run state only once per turn. So the
journal wraps the models and the tools themselves.
"""
